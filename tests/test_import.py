"""What `import cnorm` does to the machine: it reads modules, and nothing else."""

import importlib
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cnorm

SOURCES = Path(__file__).parents[1] / "cnorm"
IMPORT = re.compile(r"^from (\.*)([\w.]*) c?import (?:\(([^)]*)\)|(.*))", re.MULTILINE)

# What Python reports of itself (https://docs.python.org/3/library/audit_events.html), in a process
# that has imported numpy.
AUDITED = """
import os, sys, sysconfig, threading
from importlib.util import find_spec
import numpy
import multiprocessing, subprocess, socket  # so that their own imports do not count

# An editable install finds the package by a hook, wherever its folder is.
package = find_spec("cnorm").submodule_search_locations
places = [*sys.path, *sysconfig.get_paths().values(), *package]
folders = {os.path.realpath(place) for place in places if place}
events, modules, environment = [], set(sys.modules), dict(os.environ)
sys.addaudithook(lambda event, arguments: events.append((event, arguments)))
import cnorm
ended = len(events)

HARMLESS = {
    "import", "compile", "exec", "marshal.loads", "os.listdir", "sys._getframe",
    "object.__getattr__", "object.__setattr__", "sys._getframemodulename",
}
for event, arguments in events[:ended]:
    if event == "open":
        path, mode, flags = arguments
        real = os.path.realpath(path)
        assert real.endswith((".py", ".pyc")), f"opened {path}"
        assert any(real.startswith(folder + os.sep) for folder in folders), f"opened {path}"
        assert flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0, f"opened {path} for writing"
    elif event == "function.__new__":  # a function of the package's own under another name
        path = os.path.realpath(arguments[0].co_filename)
        assert any(path.startswith(os.path.realpath(p) + os.sep) for p in package), arguments
    else:
        assert event in HARMLESS, f"{event} {arguments}"
assert any(event == "open" for event, _ in events[:ended]), "nothing was audited"

new = {name.partition(".")[0] for name in set(sys.modules) - modules}
strangers = new - {"cnorm", "numpy", "cython_runtime"} - sys.stdlib_module_names
strangers = {name for name in strangers if not name.startswith("_cython_")}
assert not strangers, strangers
assert threading.active_count() == 1
assert dict(os.environ) == environment
"""


def test_an_import_opens_modules_alone(elsewhere):
    done = subprocess.run(
        [sys.executable, "-B", "-c", AUDITED], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["-c", "import cnorm"], ["-m", "cnorm", "check"]])
@pytest.mark.parametrize("other", [None, "functional.cpython-27-x86_64-linux-gnu.so"])
def test_sources_that_are_not_compiled_say_what_to_do(tmp_path, monkeypatch, command, other):
    source = Path(cnorm.__file__).parent
    compiled = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(source, tmp_path / "cnorm", ignore=compiled)
    if other:
        (tmp_path / "cnorm" / other).touch()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    python = "for this Python ({}.{}) ".format(*sys.version_info) if other else ""
    assert run.stderr.splitlines()[-1] == (
        f"ImportError: the cnorm in {tmp_path} is source code that is not compiled {python}yet: "
        "run `pip install -e .` there, or start Python in another folder to use an installed cnorm"
    )
    assert "circular" not in run.stderr
    assert "another exception" not in run.stderr


def test_sources_that_changed_after_they_were_compiled_say_what_to_do(tmp_path, monkeypatch):
    shutil.copytree(Path(cnorm.__file__).parent, tmp_path / "cnorm")
    (tmp_path / "setup.py").touch()  # a clone, not what a wheel brings
    with (tmp_path / "cnorm" / "_threads.py").open("a") as file:
        file.write("from ._runtime import of_a_later_version\n")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, "-c", "import cnorm"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ImportError: cannot import name 'of_a_later_version' from 'cnorm._run")
    assert last.endswith(
        f": if the source in {tmp_path} has changed since it was compiled, run `pip install -e .` "
        "there"
    )


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_checkpoint_and_interop_are_imported_when_first_used(elsewhere):
    code = """
import sys, cnorm
assert not {"cnorm.checkpoint", "cnorm.interop"} & sys.modules.keys()
cnorm.checkpoint.save("x.npz", {"a": cnorm.LayerNorm(3).weight})
print(sorted(cnorm.checkpoint.load("x.npz")))
assert "cnorm.interop" not in sys.modules
print(cnorm.interop.__name__)
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("['a']\ncnorm.interop\n", "")


def test_a_library_of_interop_is_imported_when_first_used(elsewhere):
    pytest.importorskip("sklearn")
    done = run("import cnorm; print(cnorm.interop.sklearn.__name__, dir(cnorm.interop))")
    assert done.stdout.startswith("cnorm.interop.sklearn ['")
    assert "'sklearn'" in done.stdout


def test_a_library_that_is_missing_is_named_when_it_is_used(elsewhere):
    hide = "import sys; sys.modules['torch'] = None; import cnorm; "
    done = run(hide + "cnorm.interop.torch")
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: cnorm.interop.torch needs torch: pip install 'cnorm-layers[torch]'"
    )


@pytest.mark.parametrize("module", ["cnorm", "cnorm.interop"])
def test_what_is_not_there_is_an_attribute_error(module):
    module = importlib.import_module(module)
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nonse"):
        module.nonsense  # noqa: B018


def test_completion_shows_the_public_names(elsewhere):
    names = dir(cnorm)
    assert names == sorted({*cnorm.__all__, "checkpoint", "interop"})
    assert {"BatchNorm2d", "functional", "show_config"} <= set(names)
    assert all(name == "__version__" or not name.startswith("_") for name in names)
    assert all(hasattr(cnorm, name) for name in names)
    stub = (Path(cnorm.__file__).parent / "__init__.pyi").read_text()
    assert "from . import checkpoint as checkpoint" in stub
    assert "from . import interop as interop" in stub


def imports():
    """Of each module of the package, in Python or Cython, those that it imports at its head."""
    files = {}
    for path in [p for suffix in ("py", "pyx", "pxd") for p in SOURCES.rglob(f"*.{suffix}")]:
        name = ".".join(["cnorm", *path.relative_to(SOURCES).with_suffix("").parts])
        files.setdefault(name.removesuffix(".__init__"), []).append(path)
    graph = {}
    for name, paths in files.items():
        found = graph[name] = set()
        for path in paths:
            package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
            for dots, module, *names in IMPORT.findall(path.read_text(encoding="utf-8")):
                parents = package[: len(package) - len(dots) + 1] if dots else []
                base = ".".join([*parents, *filter(None, [module])])
                for imported in re.findall(r"\w+", " ".join(names)):
                    target = f"{base}.{imported}"
                    found.add(target if target in files else base)
        # `cnorm` is where everything else is imported from, by its full name or by dots
        found &= files.keys() - {name, "cnorm"}
    return graph


def test_no_modules_import_each_other():
    graph = imports()
    assert "cnorm._call.arrays" in graph["cnorm._call.rows"]
    assert "cnorm.kernels.mixing" in graph["cnorm._call.switch"]
    list(TopologicalSorter(graph).static_order())  # CycleError names those in a circle
