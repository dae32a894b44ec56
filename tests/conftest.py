"""The axes that the tests of functions and kernels run over, and their random numbers."""

import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

# Tests mean the numbers of threads that they name, on a busy machine too, unless told otherwise.
os.environ.setdefault("CNORM_THREAD_POLICY", "fixed")
sys.path.insert(0, str(Path(__file__).parent))  # for operations and layouts, which tests share

from operations import DTYPES, OPERATIONS


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, where `python -c` finds the cnorm under test and not the sources."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
def rng(request):
    """Random numbers of the test's own, whatever runs beside it."""
    name = request.node.nodeid.rpartition("/")[2]
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.fixture
def build(request):
    """An instruction set that is built and that this processor runs, each in turn."""
    from cnorm import _dispatch

    with _dispatch.using(request.param):
        yield request.param


@pytest.fixture
def whole(request):
    """Whether a test that can do with a part of its cases runs all of them."""
    return _whole(request.config)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=OPERATIONS, ids=str)
def operation(request):
    return request.param


def pytest_generate_tests(metafunc):
    if "build" in metafunc.fixturenames:
        from cnorm import _dispatch

        metafunc.parametrize("build", _dispatch.available(), indirect=True)


def pytest_addoption(parser):
    parser.addoption(
        "--whole",
        action="store_true",
        default=os.environ.get("CNORM_TESTS") == "whole",
        help="run all cases of the largest grids, also with CNORM_TESTS=whole",
    )


def pytest_report_header(config):
    return None if _whole(config) else "of the largest grids a part; --whole runs all of them"


def pytest_configure(config):
    config.addinivalue_line("markers", "large: takes many GB; only run by `make test-large`")
    config.addinivalue_line("markers", "grid(n): without --whole one in n of its cases is run")
    config.addinivalue_line("markers", "whole: not run without --whole")


def pytest_collection_modifyitems(config, items):
    """Without ``-m large`` the large ones are not run, without ``--whole`` not all of a grid."""
    left_out = set()
    if "large" not in config.option.markexpr:
        left_out.update(item for item in items if item.get_closest_marker("large"))
    if not _whole(config):
        left_out.update(item for item in items if not _drawn(item))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _whole(config):
    """All cases: asked for, or of tests that are named one by one."""
    return config.option.whole or any("::" in argument for argument in config.args)


def _drawn(item):
    """Whether a case is one of those that are always run: the same ones each time."""
    if item.get_closest_marker("whole"):
        return False
    grid = item.get_closest_marker("grid")
    return grid is None or zlib.crc32(item.name.encode()) % grid.args[0] == 0
