"""What `import cnorm` does to the machine: it reads modules, and nothing else."""

import subprocess
import sys

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
