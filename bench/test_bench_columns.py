"""The columns family: BatchNorm of 2-D input, and the norms channels last."""

FAMILY = "columns"


def test_columns(measure, case):
    measure(case)
