"""Libraries that tests import where they are installed, and bench/networks.py, which knows how."""

import importlib.util
from pathlib import Path

import pytest

# Some Pythons have no safetensors: a test that reads or writes such a file is then skipped.
NEEDS_SAFETENSORS = pytest.mark.skipif(
    importlib.util.find_spec("safetensors") is None, reason="needs safetensors"
)
SAFETENSORS = pytest.param(".safetensors", marks=NEEDS_SAFETENSORS)

_BENCH = Path(__file__).parents[1] / "bench" / "networks.py"


def networks():
    """The module bench/networks.py; it needs torch."""
    if not hasattr(networks, "module"):
        spec = importlib.util.spec_from_file_location("networks", _BENCH)
        networks.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(networks.module)
    return networks.module


def library(name):
    """A library or something in it; the test is skipped without."""
    package, *rest = name.split(".")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)
    module = networks().library(package)
    return importlib.import_module(name) if rest else module
