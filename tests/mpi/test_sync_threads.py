"""SyncBatchNorm on ranks that are threads: needs no MPI."""

import pytest
from communicators import on_threads
from sync_checks import CHECKS


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_threads(check, size):
    errors = [result for result in on_threads(size, check) if result is not None]
    errors.sort(key=missed_a_rank)
    if errors:
        raise errors[0]


def missed_a_rank(error):
    """Whether an error only follows from that of another rank."""
    return "BrokenBarrierError" in repr(error.__cause__ or error)
