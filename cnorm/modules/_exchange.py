"""One collective among the ranks of a communicator, in which a rank that failed takes part too.

Whatever a rank has to say, it says in one row of float64:

    call, mode, num_features, dtype, count, error | values per channel, or the text of the error

A row has the same length in every call of a module, so that ranks that are in different calls read
each other's rows and can say so; its length is a power of two, so that ranks whose num_features
differ can, unless they differ by much. Then MPI itself finds messages of different lengths.
"""

import operator
from contextlib import contextmanager, nullcontext

import numpy as np

CALLS = FORWARD, BACKWARD = "forward", "backward"
MODES = ("evaluation", "training")
DTYPES = ("float16", "bfloat16", "float32", "float64")
ERRORS = (ValueError, TypeError, MemoryError, RuntimeError)  # what is none of them is the last

HEADER = 6
SHORTEST = 256  # 2 KiB: up to 62 channels
VALUES = 4  # per channel, at most


class Exchange:
    """What the ranks of `comm` tell each other: one `Allgather` a call.

    `comm` is an mpi4py communicator, or anything with its `Allgather` and `Get_size`; `training`
    says whether the ranks take their statistics together, which they do in training only.
    """

    def __init__(self, comm, num_features, training):
        self.comm = comm
        self.num_features = operator.index(num_features)
        self.training = training
        needed = HEADER + VALUES * self.num_features
        self.length = max(SHORTEST, 1 << (needed - 1).bit_length())

    @contextmanager
    def reporting(self, call):
        """Take part in the collective of `call` with the error of the block, if there is one.

        Every rank then raises it, this one too.
        """
        try:
            yield
        except Exception as error:
            row = self._row(call)
            row[5] = 1 + next((i for i, e in enumerate(ERRORS) if isinstance(error, e)), 3)
            text = str(error) if isinstance(error, ERRORS) else f"{type(error).__name__}: {error}"
            text = text.encode()[: row[HEADER:].nbytes]
            row[HEADER:].view(np.uint8)[: len(text)] = np.frombuffer(text, np.uint8)
            self._gather(row)

    def gather(self, call, dtype, count, *values):
        """The counts (P) and the values (P, k, C) of all ranks, in rank order.

        Parameters
        ----------
        call : FORWARD or BACKWARD
        dtype : dtype
            Of the input.
        count : int
            Elements per channel of this rank.
        *values : ndarray, shape (C,)
            At most four.

        Raises
        ------
        The same on every rank, where one has failed or they disagree.
        """
        row = self._row(call)
        row[3] = DTYPES.index(dtype.name)
        row[4] = count
        values = np.array(values)
        row[HEADER : HEADER + values.size] = values.reshape(-1)
        rows = self._gather(row)
        of_channels = rows[:, HEADER : HEADER + values.size]
        return rows[:, 4].tolist(), of_channels.reshape(len(rows), *values.shape)

    def agree(self, call, dtype):
        """Take part in the collective of `call` with nothing but the header, as in evaluation."""
        self.gather(call, dtype, 0)

    def _row(self, call):
        row = np.zeros(self.length)
        row[:3] = CALLS.index(call), self.training, self.num_features
        return row

    def _gather(self, row):
        rows = np.zeros((self.comm.Get_size(), self.length))
        try:
            self.comm.Allgather(row, rows)
        except Exception as error:
            raise RuntimeError(
                "SyncBatchNorm could not gather from the other ranks: do all of them make the same "
                f"calls, with the same num_features (here {self.num_features})?"
            ) from error
        _check(rows)
        return rows


class _Silence:
    """The exchange of a rank that is alone, or evaluates alone: its errors are its own."""

    training = False

    def reporting(self, call):
        return nullcontext()

    def agree(self, call, dtype):
        pass


SILENCE = _Silence()


def _check(rows):
    """Raise what every rank raises from these rows, unless all is well."""
    alone = "; where one rank evaluates alone, let it do so inside cnorm.no_grad()"
    _agree("mode", [MODES[int(i)] for i in rows[:, 1]], alone)
    _agree("call", [CALLS[int(i)] for i in rows[:, 0]])
    failed = np.flatnonzero(rows[:, 5])
    if failed.size:
        first = failed[0]
        kind = ERRORS[int(rows[first, 5]) - 1]
        texts = [row[HEADER:].tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
        if len(failed) < len(rows) or len(set(texts)) > 1:
            raise kind(f"SyncBatchNorm failed on rank {first} of {len(rows)}: {texts[first]}")
        raise kind(texts[0])
    _agree("num_features", rows[:, 2].astype(int).tolist())
    _agree("dtype", [DTYPES[int(i)] for i in rows[:, 3]])


def _agree(what, of_rank, advice=""):
    if len(set(of_rank)) > 1:
        listed = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(of_rank))
        raise ValueError(f"SyncBatchNorm needs one {what} on all ranks, but got {listed}{advice}")
