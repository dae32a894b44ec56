"""cnorm's norms for JAX on the CPU: under ``jit`` and ``vmap``, with reverse-mode gradients.

The functions take JAX arrays and return JAX arrays; the work runs in cnorm through
`jax.pure_callback`, so the program waits for it on the host. Under ``vmap`` the samples run one
after the other. Gradients are for reverse mode (`jax.grad`, `jax.vjp`) and of first order.
"""

import operator
from contextlib import suppress
from functools import partial

import numpy as np

from . import _norms
from ._missing import needs

with needs("jax"):
    import jax
    import jax.numpy as jnp

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "rms_norm",
]


def batch_norm(input, running_mean=None, running_var=None, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5, *, channel_axis=1, where=None):  # fmt: skip
    """`cnorm.functional.batch_norm`, which in JAX cannot update its arguments.

    `where` is an array of bools that broadcasts to the input, and says which elements count; the
    result and the gradient of the input are 0 elsewhere. All functions here but
    `local_response_norm` take it.

    Returns
    -------
    Array, or tuple of three
        The result; in training with running statistics ``(y, running_mean, running_var)``, the
        new ones, through which no gradient flows.

    Examples
    --------
    >>> import jax.numpy as jnp, cnorm.interop.jax as cj
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, mean, var = cj.batch_norm(x, jnp.zeros(2), jnp.ones(2), training=True)
    >>> print(mean, var)
    [0.2 2. ] [ 1.1 20.9]
    """
    norm = _norms.BatchNorm(bool(training), momentum, eps, channel_axis)
    return _with_running(norm, where, input, weight, bias, running_mean, running_var)


def instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5, *, channel_axis=1,
                  where=None):  # fmt: skip
    """`cnorm.functional.instance_norm`; with running statistics to update as `batch_norm` here."""
    norm = _norms.InstanceNorm(bool(use_input_stats), momentum, eps, channel_axis)
    return _with_running(norm, where, input, weight, bias, running_mean, running_var)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, *, channel_axis=1,
               where=None):  # fmt: skip
    """`cnorm.functional.group_norm`."""
    return _apply(_norms.GroupNorm(num_groups, eps, channel_axis), where, input, weight, bias)[0]


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, *, where=None):
    """`cnorm.functional.layer_norm`."""
    return _apply(_norms.LayerNorm(_shape(normalized_shape), eps), where, input, weight, bias)[0]


def rms_norm(input, normalized_shape, weight=None, eps=None, *, where=None):
    """`cnorm.functional.rms_norm`."""
    return _apply(_norms.RMSNorm(_shape(normalized_shape), eps), where, input, weight, None)[0]


def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0, *, channel_axis=1):
    """`cnorm.functional.local_response_norm`."""
    norm = _norms.LocalResponseNorm(size, alpha, beta, k, channel_axis)
    return _apply(norm, None, input, None, None)[0]


def _shape(normalized_shape):
    if hasattr(normalized_shape, "__iter__"):
        return tuple(normalized_shape)
    return (operator.index(normalized_shape),)


def _with_running(norm, where, input, weight, bias, *running):
    given = [r for r in running if r is not None]
    if len(given) == 1:
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    y, *new = _apply(norm, where, input, weight, bias, *given)
    return (y, *new) if new else y


def _apply(norm, where, *arrays):
    arrays = [None if a is None else jnp.asarray(a) for a in arrays]
    for a in arrays:
        if a is not None and not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(f"cnorm's norms take float arrays, but got dtype {a.dtype}")
    return _norm(norm, _mask(where, arrays[0]), *arrays)


def _mask(where, x):
    """A mask, checked before a callback sees it."""
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype == bool:
        with suppress(ValueError):
            if jnp.broadcast_shapes(where.shape, x.shape) == x.shape:
                return where
    from .. import _hints  # as everywhere in cnorm, once a call has failed

    if where.dtype != bool:
        raise TypeError(_hints.mask_dtype(where.dtype))
    raise ValueError(_hints.mask_shape(where.shape, x.shape))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(norm, where, *arrays):
    """[y, *new running statistics]."""
    return _forward(norm, where, *arrays)[0]


def _forward(norm, where, *arrays):
    """([y, *new running statistics], what backward needs)."""
    x, weight, bias, *running = arrays
    updated = running if norm.uses_input_stats else ()
    stats = [_bits_of(shape) for shape in norm.stats_shapes(x.shape)]

    def callback(where, x, weight, bias, *running):
        running = [np.array(r) for r in running]  # copies, for cnorm to update
        y, *stats = norm.forward(*map(_array, (x, weight, bias)), *running, **_option(where))
        return (y, *running[: len(updated)]), [s.view(np.uint32) for s in stats]

    results, stats = _call(callback, ((_like(x), *map(_like, updated)), stats), where, *arrays)
    return results, (where, x, weight, bias, stats, len(running))


def _backward(norm, kept, grads):
    where, x, weight, bias, stats, running = kept

    def callback(where, dy, x, weight, *stats):
        stats = [np.asarray(s).view(np.float64) for s in stats]
        dx, dw, db = norm.backward(*map(_array, (dy, x, weight)), *stats, **_option(where))
        return dx, None if weight is None else dw, None if bias is None else db

    shapes = tuple(None if a is None else _like(a) for a in (x, weight, bias))
    grads = _call(callback, shapes, where, grads[0], x, weight, *stats)
    return None, *grads, *[None] * running


_norm.defvjp(_forward, _backward)


def _call(callback, shapes, *arrays):
    return jax.pure_callback(callback, shapes, *arrays, vmap_method="sequential")


def _array(a):
    return None if a is None else np.asarray(a)


def _option(where):
    """The mask as the option of a norm that it is."""
    return {} if where is None else {"where": np.asarray(where)}


def _like(a):
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _bits_of(shape):
    """Statistics are float64, which JAX has only where asked to: they travel as pairs of uint32."""
    return jax.ShapeDtypeStruct((*shape[:-1], 2 * shape[-1]), np.uint32)
