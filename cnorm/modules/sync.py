"""Batch normalization of a batch that is spread over processes."""

import numpy as np

from .. import functional as F
from .. import steps
from .._call.masks import mask_of, masked_as, plain_gradient
from .._call.moments import measure
from .._call.running import update
from ._arrays import as_array, as_gradient
from ._communicator import Shared, mpi_runs, world
from ._docs import parameters_of
from ._exchange import BACKWARD, FORWARD, SILENCE, Exchange
from ._grad_mode import grad_mode
from ._lazy import LazyNorm
from ._parts import like, whole_moments, whole_sums
from ._traversal import replaced
from .batch import BatchNorm1d, _BatchNorm


@parameters_of(BatchNorm1d)
class SyncBatchNorm(_BatchNorm):
    """Batch normalization over the samples of all ranks of an MPI communicator.

    Each rank runs forward and backward on its own part of the batch, of at least two dimensions;
    parts may differ in size, and be empty. The output, the gradient of the input and the running
    statistics are those of `BatchNorm1d` on the whole batch. The gradients of weight and bias are
    those of the part, as of every other layer: add or average them over the ranks.

    Each forward and each backward is one collective, in which a rank with bad input takes part
    too: every rank then raises its error. So does every rank where some train and others evaluate.
    Evaluation takes nothing else from the others. It does not communicate inside
    ``cnorm.no_grad()``, where one rank may evaluate alone, nor before MPI was started.

    Parameters
    ----------
    process_group : communicator
        An mpi4py communicator, or what has its `Allgather` and `Get_size`; None is
        ``MPI.COMM_WORLD``. Copies of the module share it.

    Examples
    --------
    >>> import cnorm
    >>> net = cnorm.Sequential(cnorm.BatchNorm2d(3, affine=False), cnorm.ReLU())
    >>> cnorm.SyncBatchNorm.convert_sync_batchnorm(net)[0].extra_repr()
    '3, eps=1e-05, momentum=0.1, affine=False, bias=False, track_running_stats=True'
    """

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        process_group=None, device=None, dtype=None, *, bias=True, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            channel_axis=channel_axis, activation=activation,
        )  # fmt: skip
        self.process_group = process_group

    def _exchange(self, call):
        """How this rank and the others talk, or `SILENCE`."""
        comm = self.process_group
        if not self.training:
            # Without a forward to go back through, backward is an error that all should hear of.
            alone = call == FORWARD and grad_mode.get() is False
            if alone or (comm is None and not mpi_runs()):
                return SILENCE
        comm = world() if comm is None else comm
        alone = comm.Get_size() == 1
        return SILENCE if alone else Exchange(comm, self.num_features, self.training)

    def _check_input_dim(self, input):
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")
        if input.shape[self.channel_axis :][:1] == (0,):
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")

    def forward(self, input, where=None):
        with self._exchange(FORWARD).reporting(FORWARD):
            input = as_array(input)
            self._check_input_dim(input)
        return super().forward(input, where)

    def _normalize(self, *arguments):
        if self.training and self.track_running_stats:
            return self._lock.run(self._normalize_in_turn, *arguments)
        return self._normalize_in_turn(*arguments)

    def _normalize_in_turn(
        self, input, keep, slope, clip, use_input_stats, running_mean, running_var, where
    ):  # fmt: skip
        exchange = self._exchange(FORWARD)
        if exchange.training:
            return self._normalize_together(
                exchange, input, slope, clip, running_mean, running_var, where
            )
        with exchange.reporting(FORWARD):
            output, kept = super()._normalize(
                input, keep, slope, clip, use_input_stats, running_mean, running_var, where
            )
        exchange.agree(FORWARD, input.dtype)
        return output, kept and (input, exchange, *kept[1:])

    def _normalize_together(self, exchange, input, slope, clip, running_mean, running_var, where):
        given = input
        with exchange.reporting(FORWARD):
            input, where = mask_of(given, where)
            self._check(input, slope, clip, running_mean, running_var)
            if where is None:
                count, *moments = steps.moments(input, channel_axis=self.channel_axis)
                count = np.full(self.num_features, float(count))
            else:
                channel = self.channel_axis % input.ndim
                axes = tuple(i for i in range(input.ndim) if i != channel)
                _, count, *moments = measure(input, axes, where, "propagate")
        _, values = exchange.gather(FORWARD, input.dtype, 0, count, *moments)
        count, mean, lo, m2 = whole_moments(values[:, 0], values[:, 1:])
        if (count == 1).any():
            from .. import _hints

            raise _hints.one_value(f"[1, {len(mean)}] of all ranks together")
        with np.errstate(all="ignore"):
            rstd = 1 / np.sqrt(np.where(count > 0, m2 / count, m2) + self.eps)
        output = steps.apply(
            input, mean, lo, rstd, self.weight, self.bias, channel_axis=self.channel_axis,
            negative_slope=slope, clip=clip,
        )  # fmt: skip
        if where is not None:
            np.copyto(output, 0, where=np.logical_not(where))
        self._track(running_mean, running_var, count, mean, m2)
        return masked_as(given, output), (given, exchange, True, mean, rstd, count, lo)

    def _check(self, input, slope, clip, running_mean, running_var):
        # The checks of batch norm: it runs on no samples at all, which changes no statistic.
        F.batch_norm(
            input[:0], running_mean, running_var, self.weight, self.bias, True, 0.0, self.eps,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip,
        )  # fmt: skip
        if (channels := input.shape[self.channel_axis]) != self.num_features:
            raise ValueError(f"SyncBatchNorm expected {self.num_features} channels, got {channels}")

    def _track(self, running_mean, running_var, count, mean, m2):
        tracked = self.num_batches_tracked if self.track_running_stats else None
        momentum = self.momentum
        if momentum is None:
            momentum = 0.0 if tracked is None else 1 / (int(tracked) + 1)
        counted = count > 0
        if running_mean is None or not counted.any():  # the empty batch changes no statistic
            running_mean = running_var = None
        var = m2 / np.maximum(count - 1, 1)
        if running_mean is None or counted.all():
            counted = None
        update(running_mean, running_var, momentum, mean, var, tracked, counted)

    def backward(self, grad_output):
        # As forward talked, whatever was switched since.
        exchange = self._exchange(BACKWARD) if self._kept is None else self._kept[1]
        with exchange.reporting(BACKWARD):
            as_gradient(grad_output, self.kept()[0])
        return super().backward(grad_output)

    def _backward(self, grad_output, slope, clip, input, exchange, *stats):
        if exchange.training:
            return self._backward_together(grad_output, slope, clip, input, exchange, *stats)
        with exchange.reporting(BACKWARD):
            gradients = super()._backward(grad_output, slope, clip, input, *stats)
        exchange.agree(BACKWARD, input.dtype)
        return gradients

    def _backward_together(
        self, grad_output, slope, clip, input, exchange, _, mean, rstd, count, lo, where=None
    ):  # fmt: skip
        options = {"channel_axis": self.channel_axis, "negative_slope": slope, "clip": clip}
        given = input
        with exchange.reporting(BACKWARD):
            grad_output = plain_gradient(given, grad_output)
            input, where = mask_of(given, where)
            if where is not None:  # what is left out adds 0 to sums, and has no gradient
                grad_output, input = (
                    np.where(where, a, np.zeros((), a.dtype)) for a in (grad_output, input)
                )
            arrays = grad_output, input, mean, lo, rstd, self.weight, self.bias
            # The checks of batch norm, as in `_check`.
            super()._backward(grad_output[:0], slope, clip, input[:0], True, mean, rstd)
            sums, *gradients = steps.grad_sums(*arrays, **options)
        _, sums = exchange.gather(BACKWARD, input.dtype, 0, *sums.T)
        sums = whole_sums(sums).T
        each = float(count.max(initial=0))
        if (count != each).any():  # with masks; sums over one count for all channels
            sums = sums * (each / np.maximum(count, 1))[:, None]
        grad_input = steps.grad_apply(*arrays, sums, each, **options)
        if where is not None:
            np.copyto(grad_input, 0, where=np.logical_not(where))
        learned = [self.weight, self.bias] + [slope] * isinstance(slope, np.ndarray)
        return masked_as(given, grad_input), *map(like, gradients, learned)

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        """Replace every batch norm in `module` by one that is synchronised.

        Parameters
        ----------
        module : Module
            A batch norm, or what holds some, which is changed in place.
        process_group : communicator
            See `SyncBatchNorm`.

        Returns
        -------
        Module
            `module`, or what replaces it. Parameters are the same objects; buffers are copies.
        """
        return replaced(module, lambda m: cls._of(m, process_group))

    @classmethod
    def _of(cls, module, process_group):
        """The synchronised twin of a batch norm; any other module itself."""
        if not isinstance(module, _BatchNorm):
            return module
        if isinstance(module, LazyNorm):
            raise ValueError(
                f"{type(module).__name__} is lazy: call it with a batch, or load a state, before "
                "it is converted to SyncBatchNorm"
            )
        sync = cls(
            module.num_features, module.eps, module.momentum, module.affine,
            module.track_running_stats, process_group, channel_axis=module.channel_axis,
            activation=module.activation,
        )  # fmt: skip
        sync.weight, sync.bias = module.weight, module.bias
        for name, buffer in module._own("buffer"):
            setattr(sync, name, None if buffer is None else buffer.copy())
        sync.training = module.training
        return sync

    def __getstate__(self):
        return super().__getstate__() | {"process_group": Shared(self.process_group)}

    def __setstate__(self, state):
        super().__setstate__(state | {"process_group": state["process_group"].comm})
