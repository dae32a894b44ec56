"""Types: a typed program passes mypy's strictest mode, and the stubs say what is there."""

from __future__ import annotations

import inspect
import os
import pydoc
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import cnorm
from cnorm import functional, steps

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[1]
FUNCTIONS = [
    getattr(module, name) for module in (functional, steps) for name in sorted(module.__all__)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where mypy runs, and keeps its cache from one test to the next."""
    return tmp_path_factory.mktemp("mypy")


def run(folder, module, *arguments):
    """Run one of mypy's programs, which reads cnorm from where this test got it."""
    package = str(Path(cnorm.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package}
    if "site-packages" not in package:  # where mypy looks by itself
        environment["MYPYPATH"] = package
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_typed_program_passes_the_strictest_mode(folder):
    run(folder, "mypy", "--strict", str(ROOT / "tests/typing/usage.py"))


def test_the_inline_annotations_hold(folder):
    run(folder, "mypy", "--strict", "-p", "cnorm.checkpoint")


def test_the_stubs_say_what_is_there(folder):
    """Of every module that can be imported here: those over an absent library cannot."""
    here = ROOT / "tests/typing"
    absent = folder / "absent.txt"
    names = ("dask", "jax", "sklearn", "torch", "xarray")
    libraries = [name for name in names if find_spec(name) is None]
    absent.write_text("".join(rf"cnorm\.interop\._?{name}(_.*)?" + "\n" for name in libraries))
    options = [f"--mypy-config-file={here / 'mypy.ini'}"]
    options += [f"--allowlist={path}" for path in (here / "allowlist.txt", absent)]
    run(folder, "mypy.stubtest", "cnorm", "--ignore-unused-allowlist", *options)


def test_the_marker_of_a_typed_package_is_installed():
    assert (Path(cnorm.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_help_shows_signature_and_numpydoc(function):
    assert "input" in inspect.signature(function).parameters or function.__name__.startswith("add_")
    text = inspect.getdoc(function)
    assert text
    for section in ("Parameters", "Returns"):
        assert f"{section}\n{'-' * len(section)}\n" in text
    # once: not in the docstring's first line as well
    shown = pydoc.plaintext.document(function)
    assert shown.count(f"{function.__name__}(") == 1 + text.count(f".{function.__name__}(")
