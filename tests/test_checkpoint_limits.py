"""Whatever a file says, it ends in a result or in CheckpointError, soon and in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
COUNT, SEED = os.environ.get("CNORM_HOSTILE", "10"), os.environ.get("CNORM_SEED", "0")
# Of CPU, and beyond the file and the result. On an idle core the costliest takes 2 seconds.
SECONDS, MEGABYTES = 6, 256


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measured through Linux")
def test_generated_files_cost_little(elsewhere):
    pytest.importorskip("safetensors")
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, TESTS / "hostile_files.py", COUNT, SEED],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600 + 10 * int(COUNT),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 10 + 5 * int(COUNT)
    for kind, n, _, seconds, megabytes, outcome in rows:
        assert "WRONG" not in outcome, (kind, n)
        assert seconds < SECONDS, (kind, n)
        assert megabytes < MEGABYTES, (kind, n)
    outcomes = {outcome for *_, outcome in rows}  # some are harmless
    assert "loaded" in outcomes
    assert len(outcomes) > 10
