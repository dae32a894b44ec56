"""docs/torch_table.md is what its script writes."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "_generate_parity_table.py"


def test_table_is_up_to_date():
    script = runpy.run_path(str(SCRIPT))
    assert script["TARGET"].read_text() == script["table"](), f"run python docs/{SCRIPT.name}"
