"""What the suites share: each is the everyday cases of one kernel family.

    pytest bench/ --benchmark-only
    pytest bench/ --benchmark-only --benchmark-autosave
    pytest bench/ --benchmark-only --benchmark-compare

For all peers, each in a process of its own, and for the whole grid there is `compare.py`.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cases
import implementations

IN_PROCESS = ("cnorm", "cnorm out=", "NumPy", "torch", "copy")


@pytest.fixture(params=IN_PROCESS)
def implementation(request):
    """Each implementation that is cheap to have beside the others in one process."""
    found = implementations.BY_NAME[request.param]
    if not found.is_installed():
        pytest.skip(f"{request.param} is not installed")
    return found(implementations.available_threads())


@pytest.fixture
def measure(benchmark, implementation):
    """Prepare a case outside the clock and time its call; the group puts the peers together."""

    def run(case):
        try:
            call = implementation.prepare(case)
        except implementations.Unsupported as reason:
            pytest.skip(f"{implementation.name}: {reason}")
        benchmark.group = case.name
        benchmark.extra_info["bytes"] = case.nbytes
        benchmark(call)

    return run


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        family = metafunc.module.FAMILY
        chosen = [case for case in cases.everyday() if case.family == family]
        metafunc.parametrize("case", chosen, ids=[case.name.replace(" ", "-") for case in chosen])
