"""The window family: LocalResponseNorm."""

FAMILY = "window"


def test_window(measure, case):
    measure(case)
