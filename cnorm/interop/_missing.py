"""What an optional library that is not installed says."""


def missing(error, extra):
    """Return the error to raise in place of `error`: it names cnorm's extra."""
    library = error.name.partition(".")[0]
    message = f"cnorm.interop.{extra} needs {library}: pip install 'cnorm[{extra}]'"
    return ModuleNotFoundError(message, name=error.name)
