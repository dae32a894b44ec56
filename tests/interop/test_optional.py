"""The libraries are optional: who lacks one is told how to get it, and the examples run."""

import runpy
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["torch", "jax", "sklearn", "dask", "xarray"])
def test_missing_library_names_the_extra(name, elsewhere):
    code = f"import sys; sys.modules[{name!r}] = None; import cnorm.interop.{name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert last == (
        f"ModuleNotFoundError: cnorm.interop.{name} needs {name}: "
        f"pip install 'cnorm-layers[{name}]'"
    )


def test_cnorm_alone_imports_none_of_them(elsewhere):
    code = (
        "import sys, cnorm, cnorm.interop\n"
        "print({'torch', 'jax', 'sklearn', 'dask', 'xarray'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_torch_example(capsys, monkeypatch):
    pytest.importorskip("torch")
    repeat = timeit.repeat
    monkeypatch.setattr(timeit, "repeat", lambda *a, **k: repeat(*a, **k | {"repeat": 1}))
    runpy.run_path(str(EXAMPLES / "interop_torch.py"))
    assert capsys.readouterr().out.count(" times") == 12


def test_jax_example(capsys):
    pytest.importorskip("jax")
    runpy.run_path(str(EXAMPLES / "interop_jax.py"))
    before, after = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert after < 0.2 * before


def test_sklearn_example(capsys):
    pytest.importorskip("sklearn")
    runpy.run_path(str(EXAMPLES / "interop_sklearn.py"))
    raw, normalized = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert normalized > 0.95 > raw
