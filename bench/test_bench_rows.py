"""The rows family: LayerNorm and RMSNorm."""

FAMILY = "rows"


def test_rows(measure, case):
    measure(case)
