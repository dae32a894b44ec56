"""Comparisons with torch: where it comes from, and how many were made."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for twins, which these tests share

try:
    import torch
except ImportError:
    if os.environ.get("CI"):
        raise pytest.UsageError("the parity suite needs torch==2.13.0") from None
    collect_ignore_glob = ["test_*.py"]
else:
    import twins


@pytest.fixture(autouse=True)
def one_torch_thread():
    """For this folder only: torch's limit is OpenMP's, and so cnorm's."""
    if "torch" in globals():
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)
    else:
        yield


def pytest_terminal_summary(terminalreporter):
    if "torch" in globals():
        terminalreporter.write_line(f"torch {torch.__version__}: {twins.made} comparisons made")
    else:
        terminalreporter.write_line("torch is not installed: no comparison made")
