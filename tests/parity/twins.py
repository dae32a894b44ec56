"""A module of cnorm and the same one of torch, side by side, and the comparisons of the two."""

import re

import ml_dtypes
import numpy as np
import torch

import cnorm

DTYPES = [np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]

made = 0


def _count():
    global made
    made += 1


def same(ours, theirs, what=""):
    _count()
    assert ours == theirs, what


def close(ours, theirs, ulps, what=""):
    """Equal to within `ulps` of the largest value (at least 1), and of our dtype's precision."""
    _count()
    if theirs is None or ours is None:
        assert ours is None and theirs is None, what
        return
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape, what
    if ours.dtype == np.int64:
        np.testing.assert_array_equal(ours, theirs, what)
        return
    wide = ours.astype(np.float64)
    bound = ulps * float(ml_dtypes.finfo(ours.dtype).eps) * max(1.0, np.abs(theirs).max(initial=0))
    np.testing.assert_allclose(wide, theirs, rtol=0, atol=bound, err_msg=what)


def message(error):
    """The words of an error, shapes printed as cnorm prints them, and misprints put right."""
    text = re.sub(r"torch\.Size\((\[[^]]*\])\)", r"\1", str(error))
    text = re.sub(r"expected input with shape \[\*(\d)", r"expected input with shape [*, \1", text)
    return re.sub(r"(dimensionality) +(input)", r"\1 \2", text)


def outcome(call):
    """The class and the words of what `call` raises, or None."""
    try:
        call()
    except Exception as error:  # whatever it is, it is what we compare
        return type(error), message(error)
    return None


def same_error(ours, theirs, what="", words=True):
    """Both raise the same class, with the same words."""
    ours, theirs = outcome(ours), outcome(theirs)
    _count()
    assert ours is not None or theirs is None, f"{what}: torch raises {theirs}, cnorm does not"
    assert theirs is not None or ours is None, f"{what}: cnorm raises {ours}, torch does not"
    if theirs is not None:
        assert ours[0] is theirs[0], (what, ours, theirs)
        _count()
        assert not words or ours[1] == theirs[1], what


class Twins:
    """One layer, in cnorm and (in double precision) in torch, with the same random state.

    Parameters
    ----------
    name : str
        The class, in both.
    arguments : dict
        What both are made with.
    dtype : dtype
        Of cnorm's input, parameters and statistics.
    rng : numpy.random.Generator
    options : dict
        What only cnorm takes.
    """

    def __init__(self, name, arguments, dtype, rng, options=None):
        self.dtype, self.rng = dtype, rng
        self.last = (options or {}).get("channel_axis") == -1
        self.ours = getattr(cnorm, name)(**arguments, **(options or {})).to(dtype)
        self.theirs = getattr(torch.nn, name)(**arguments).double()
        if name == "RMSNorm" and arguments.get("eps") is None and dtype != np.float64:
            self.theirs.eps = float(np.finfo(np.float32).eps)  # what None means to our dtype
        for parameter in self.ours.parameters():
            parameter[...] = rng.normal(1, 1, parameter.shape)
        self.theirs.load_state_dict(
            {
                key: torch.tensor(value if value.dtype == np.int64 else value.astype(np.float64))
                for key, value in self.ours.state_dict().items()
            }
        )
        self.ulps = {8: 20_000, 4: 60, 2: 12}[dtype.itemsize]

    def array(self, shape):
        return self.rng.normal(0.5, 2, shape).astype(self.dtype)

    def _theirs(self, array):
        if self.last:
            array = np.moveaxis(array, -1, 1)
        return torch.tensor(np.ascontiguousarray(array.astype(np.float64)))

    def step(self, shape, train, backward=True):
        """A forward and a backward pass in both, and all that they left behind, compared."""
        if self.last:
            shape = (shape[0], *shape[2:], shape[1])
        x, grad = self.array(shape), self.array(shape)
        self.ours.train(train)
        self.theirs.train(train)
        with cnorm.enable_grad():
            y = self.ours(x)
        dx = self.ours.backward(grad)
        their_x = self._theirs(x).requires_grad_()
        their_y = self.theirs(their_x)
        same((y.dtype, dx.dtype), (self.dtype, self.dtype))
        back = (0, -1, *range(1, len(shape) - 1)) if self.last else range(len(shape))
        close(y.transpose(back), their_y, self.ulps, "output")
        if backward:
            their_y.backward(self._theirs(grad))
            close(dx.transpose(back), their_x.grad, self.ulps, "gradient of the input")
        self.compare_state()

    def compare_state(self):
        """All parameters, gradients, statistics and counters, compared."""
        theirs = dict(self.theirs.named_parameters())
        ours = dict(self.ours.named_parameters())
        same(list(ours), list(theirs))
        for name, parameter in ours.items():
            close(parameter, theirs[name], 0, name)
            close(parameter.grad, theirs[name].grad, self.ulps, f"gradient of {name}")
        theirs = dict(self.theirs.named_buffers())
        same(list(dict(self.ours.named_buffers())), list(theirs))
        for name, buffer in self.ours.named_buffers():
            close(buffer, theirs[name], self.ulps, name)

    def compare_description(self):
        """repr, keys and metadata of the state, compared."""
        if hasattr(self.ours, "eps"):
            self.theirs.eps = self.ours.eps
        ours, theirs = self.ours.state_dict(), self.theirs.state_dict()
        same(list(ours), list(theirs))
        same(type(ours), type(theirs))
        same(ours._metadata, theirs._metadata)
        same([v.shape for v in ours.values()], [tuple(v.shape) for v in theirs.values()])
        if not self.last:
            same(repr(self.ours), repr(self.theirs))
