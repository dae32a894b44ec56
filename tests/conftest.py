"""The axes that the tests of functions and kernels run over, and their random numbers."""

import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

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


def pytest_configure(config):
    config.addinivalue_line("markers", "large: takes many GB; only run by `make test-large`")


def pytest_collection_modifyitems(config, items):
    """Without ``-m large`` the large ones are not run."""
    if "large" not in config.option.markexpr:
        large = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]
