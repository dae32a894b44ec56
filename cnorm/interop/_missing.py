"""What an optional library that is not installed says."""

from contextlib import contextmanager

from .._version import install


@contextmanager
def needs(extra):
    """A block of imports; where one is missing the error names cnorm's extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = error.name.partition(".")[0]
        message = f"cnorm.interop.{extra} needs {library}: {install(extra)}"
        raise ModuleNotFoundError(message, name=error.name) from None
