"""What the first import says where it cannot go on: once for all ways to import or run cnorm."""

import re
import sys
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

USAGE = 2  # the exit status of a wrong call, as argparse has it


@contextmanager
def explained():
    """Imports of compiled modules, and of what reads the environment.

    Modules that are not compiled, or were before their source changed, are an ImportError that
    names the way out. On the command line a wrong environment variable ends the process with a
    line instead of a traceback.
    """
    try:
        yield
    except ImportError as error:
        _not_compiled()
        _compiled_before(error)
        raise
    except (RuntimeError, ValueError) as error:
        if not on_command_line():
            raise
        print(f"cnorm: {error}", file=sys.stderr)
        raise SystemExit(USAGE) from None


def program():
    """How this process was started, if as a program of cnorm's, or None."""
    first = sys.argv[0] if sys.argv else ""
    # While Python looks for the module that `-m` names, and imports its package, "-m" stands there.
    if first == "-m":
        return "python -m cnorm" if _module_to_run() == "cnorm" else None
    if Path(first).parts[-2:] == ("cnorm", "__main__.py"):
        return "python -m cnorm"
    return "cnorm" if Path(first).stem == "cnorm" else None


def _module_to_run():
    """What follows `-m` on the command line of Python, also of `-mcnorm` and of `-Im cnorm`."""
    words = sys.orig_argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if found := re.fullmatch("-[A-Za-z]*?m(.*)", word):
            return found[1] or following
    return None


def on_command_line():
    """Whether the command line is what imports cnorm, and no program of the user's."""
    return program() is not None


def _not_compiled():
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


def _compiled_before(error):
    """What a clone says whose source is newer than what was compiled of it."""
    root = Path(__file__).parents[1]
    if (root / "setup.py").exists() and (error.name or "").partition(".")[0] == "cnorm":
        raise ImportError(
            f"{error}: if the source in {root} has changed since it was compiled, run "
            "`pip install -e .` there",
            name=error.name,
        ) from error
