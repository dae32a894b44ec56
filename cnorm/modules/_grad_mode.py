"""Whether a forward pass keeps what backward needs: follow the module, always, or never."""

from contextlib import contextmanager
from contextvars import ContextVar

# None: modules in training mode keep, modules in evaluation do not. Each thread has its own.
grad_mode = ContextVar("cnorm_grad_mode", default=None)
get_grad_mode = grad_mode.get


@contextmanager
def _set(mode):
    token = grad_mode.set(mode)
    try:
        yield
    finally:
        grad_mode.reset(token)


def enable_grad():
    """Keep what backward needs, in evaluation too; a context manager and a decorator.

    Applies to the calling thread. Of nested blocks the innermost decides.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LayerNorm(2).eval()
    >>> with cnorm.enable_grad():
    ...     y = norm(np.float32([[1, 2]]))
    >>> norm.backward(np.ones_like(y)).shape
    (1, 2)
    """
    return _set(True)


def no_grad():
    """Keep nothing for backward, in training too; a context manager and a decorator.

    Applies to the calling thread. Of nested blocks the innermost decides.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LayerNorm(2)
    >>> with cnorm.no_grad():
    ...     y = norm(np.float32([[1, 2]]))
    >>> norm.backward(y)
    Traceback (most recent call last):
    RuntimeError: LayerNorm.backward has no forward pass to go back through...
    """
    return _set(False)
