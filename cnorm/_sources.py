"""What an import of the sources says before anybody has compiled them."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def explain():
    """Raise an ImportError that names the way out; return where the package is compiled."""
    folder = Path(__file__).parent
    if any((folder / f"functional{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        return
    compiled = any(folder.glob("functional.*.so")) or any(folder.glob("functional.*.pyd"))
    python = "for this Python ({}.{}) ".format(*sys.version_info) if compiled else ""
    raise ImportError(
        f"the cnorm in {folder.parent} is source code that is not compiled {python}yet: "
        "run `pip install -e .` there, or start Python in another folder to use an installed cnorm",
        name="cnorm.functional",
    ) from None
