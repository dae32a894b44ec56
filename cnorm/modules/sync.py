"""Batch normalization of a batch that is spread over processes."""

import pickle
from functools import reduce

import numpy as np

from .. import functional as F
from ._arrays import as_array, as_gradient
from ._exchange import BACKWARD, FORWARD, Exchange, world
from ._lazy import LazyNorm
from .batch import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """Batch normalization over the samples of all ranks of an MPI communicator.

    Each rank runs forward and backward on its own part of the batch, of at least two dimensions;
    parts may differ in size, and be empty. The output, the gradient of the input and the running
    statistics are those of `BatchNorm1d` on the whole batch. The gradients of weight and bias are
    those of the part, as of every other layer: add or average them over the ranks.

    In training each forward and each backward is one collective, in which a rank with bad input
    takes part too: every rank then raises its error. Evaluation does not communicate.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype
        See `BatchNorm1d`.
    process_group : communicator
        An mpi4py communicator, or what has its `Allgather` and `Get_size`; None is
        ``MPI.COMM_WORLD``. Copies of the module share it.
    bias, channel_axis, activation
        See `BatchNorm1d`.

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

    def _exchange(self):
        """How this rank and the others talk; None where it is alone."""
        comm = world() if self.process_group is None else self.process_group
        alone = comm.Get_size() == 1
        return None if alone else Exchange(comm, self.num_features, self.training)

    def _check_input_dim(self, input):
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")
        if input.shape[self.channel_axis :][:1] == (0,):
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")

    def forward(self, input):
        if self.training and (exchange := self._exchange()):
            with exchange.reporting(FORWARD):
                input = as_array(input)
                self._check_input_dim(input)
        return super().forward(input)

    def _normalize(self, input, keep, slope, use_input_stats, running_mean, running_var):
        exchange = self._exchange() if self.training else None
        if exchange is None:
            output, stats = super()._normalize(
                input, keep, slope, use_input_stats, running_mean, running_var
            )
            return output, stats and (*stats, None)
        with exchange.reporting(FORWARD):
            self._check(input, slope, running_mean, running_var)
            count, *moments = F._moments(input, self.channel_axis)
        counts, moments = exchange.gather(FORWARD, input.dtype, count, *moments)
        with np.errstate(all="ignore"):
            count, mean, lo, m2 = reduce(_merged, zip(counts, *moments.swapaxes(0, 1), strict=True))
            rstd = 1 / np.sqrt((m2 / count if count else m2) + self.eps)
        if count == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, "
                f"got input size [1, {len(mean)}] of all ranks together"
            )
        output = F._apply(
            input, mean, lo, rstd, self.weight, self.bias, channel_axis=self.channel_axis,
            negative_slope=slope,
        )  # fmt: skip
        self._track(running_mean, running_var, count, mean, m2)
        return output, (True, mean, rstd, (exchange, count, lo))

    def _check(self, input, slope, running_mean, running_var):
        # The checks of batch norm: it runs on no samples at all, which changes no statistic.
        F.batch_norm(
            input[:0], running_mean, running_var, self.weight, self.bias, True, 0.0, self.eps,
            channel_axis=self.channel_axis, negative_slope=slope,
        )  # fmt: skip
        if (channels := input.shape[self.channel_axis]) != self.num_features:
            raise ValueError(f"SyncBatchNorm expected {self.num_features} channels, got {channels}")

    def _track(self, running_mean, running_var, count, mean, m2):
        tracked = self.num_batches_tracked if self.track_running_stats else None
        momentum = self.momentum
        if tracked is not None:
            tracked[()] += 1  # first: where it cannot be written, no statistic is either
        if momentum is None:
            momentum = 0.0 if tracked is None else 1 / int(tracked)
        if running_mean is not None and count:
            F._update_running(running_mean, momentum, mean)
            F._update_running(running_var, momentum, m2 / (count - 1))

    def backward(self, grad_output):
        kept = self._kept
        together = self._exchange() if kept is None else kept[-1] and kept[-1][0]
        if together:
            with together.reporting(BACKWARD):
                as_gradient(grad_output, self.kept()[0])
        return super().backward(grad_output)

    def _backward(self, grad_output, slope, input, use_input_stats, mean, rstd, together):
        if together is None:
            return super()._backward(grad_output, slope, input, use_input_stats, mean, rstd)
        exchange, count, lo = together
        arrays = grad_output, input, mean, lo, rstd, self.weight, self.bias
        options = {"channel_axis": self.channel_axis, "negative_slope": slope}
        with exchange.reporting(BACKWARD):
            # The checks of batch norm, as in `_check`.
            super()._backward(grad_output[:0], slope, input[:0], True, mean, rstd)
            sums, *gradients = F._grad_sums(*arrays, **options)
        _, sums = exchange.gather(BACKWARD, input.dtype, count, *sums.T)
        with np.errstate(all="ignore"):
            sums = reduce(np.add, sums)  # in rank order, so every rank has the same bits
        grad_input = F._grad_apply(*arrays, sums.T, count, **options)
        learned = [self.weight, self.bias] + [slope] * isinstance(slope, np.ndarray)
        return grad_input, *map(_like, gradients, learned)

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
        return _converted(cls, module, process_group, {})

    def __getstate__(self):
        return super().__getstate__() | {"process_group": _Shared(self.process_group)}

    def __setstate__(self, state):
        super().__setstate__(state | {"process_group": state["process_group"].comm})


def _merged(a, b):
    """Moments of both: `merged` of kernels/moments.pxi, operation by operation, of channels."""
    count_a, mean_a, lo_a, m2_a = a
    count_b, mean_b, lo_b, m2_b = b
    if count_a == 0:
        return b
    if count_b == 0:
        return a
    count = count_a + count_b
    share = count_b / count
    delta = (mean_b - mean_a) + (lo_b - lo_a)
    step = lo_a + delta * share
    mean = mean_a + step
    return count, mean, (mean_a - mean) + step, m2_a + m2_b + delta * delta * (count_a * share)


def _like(gradient, parameter):
    """A gradient per channel, in the shape and dtype of its parameter."""
    if parameter is None:
        return None
    if parameter.size == 1:  # one slope for all channels; added in order, as batch norm does
        gradient = np.add.accumulate(gradient)[-1:]
    return gradient.reshape(parameter.shape).astype(parameter.dtype)


def _converted(cls, module, process_group, done):
    """See `convert_sync_batchnorm`; `done` has what each module became, for one that is shared."""
    if module in done:
        return done[module]
    done[module] = converted = module
    if isinstance(module, _BatchNorm):
        if isinstance(module, LazyNorm):
            raise ValueError(
                f"{type(module).__name__} is lazy: call it with a batch, or load a state, before "
                "it is converted to SyncBatchNorm"
            )
        done[module] = converted = cls(
            module.num_features, module.eps, module.momentum, module.affine,
            module.track_running_stats, process_group, channel_axis=module.channel_axis,
            activation=module.activation,
        )  # fmt: skip
        converted.weight, converted.bias = module.weight, module.bias
        for name, buffer in module._own("buffer"):
            setattr(converted, name, None if buffer is None else buffer.copy())
        converted.training = module.training
    for name, child in module._own("module"):
        if child is not None:
            converted.add_module(name, _converted(cls, child, process_group, done))
    return converted


class _Shared:
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
        return _Shared, (self.comm,)
