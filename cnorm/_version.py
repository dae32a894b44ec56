__version__ = "0.1.0"

# What is installed; the import is `cnorm`. On the public index `cnorm` is another project.
DISTRIBUTION = "cnorm-layers"


def install(extra: str) -> str:
    """The command that brings an extra of this distribution: errors tell it to the user."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
