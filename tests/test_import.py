"""What `import cnorm` does to the machine: it reads modules, and nothing else."""

import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "cnorm"
IMPORT = re.compile(r"^from (\.*)([\w.]*) c?import (?:\(([^)]*)\)|(.*))", re.MULTILINE)

# What Python reports of itself (https://docs.python.org/3/library/audit_events.html), in a process
# that has imported numpy.
AUDITED = """
import os, sys, sysconfig, threading
import numpy
import multiprocessing, subprocess, socket  # so that their own imports do not count

folders = {os.path.realpath(p) for p in [*sys.path, *sysconfig.get_paths().values()] if p}
events, modules, environment = [], set(sys.modules), dict(os.environ)
sys.addaudithook(lambda event, arguments: events.append((event, arguments)))
import cnorm
ended = len(events)

HARMLESS = {
    "import", "compile", "exec", "marshal.loads", "os.listdir", "sys._getframe",
    "object.__getattr__", "object.__setattr__",
}
for event, arguments in events[:ended]:
    if event == "open":
        path, mode, flags = arguments
        real = os.path.realpath(path)
        assert real.endswith((".py", ".pyc")), f"opened {path}"
        assert any(real.startswith(folder + os.sep) for folder in folders), f"opened {path}"
        assert flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0, f"opened {path} for writing"
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
    assert "cnorm.steps" in graph["cnorm._switch"]
    list(TopologicalSorter(graph).static_order())  # CycleError names those in a circle
