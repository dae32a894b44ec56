"""The MPI communicator of a module: what it is by default, and how copies and pickles have it."""

import pickle
import sys

from .._version import install


def world():
    """MPI.COMM_WORLD. Importing mpi4py starts MPI, so it waits until a rank needs it."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"SyncBatchNorm needs mpi4py and an MPI library: {install('mpi')}"
        ) from error
    return MPI.COMM_WORLD


def mpi_runs():
    """Whether MPI has started in this process, and not ended; asking does not start it."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized()


class Shared:
    """A communicator in the state of a module: copies share it, pickles hold it if they can."""

    def __init__(self, comm):
        self.comm = comm

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        try:
            pickle.dumps(self.comm)
        except Exception as error:
            raise TypeError(
                "this SyncBatchNorm has a process_group that belongs to the running processes, and "
                "cannot be pickled: set process_group to None first, or save its state_dict()"
            ) from error
        return Shared, (self.comm,)
