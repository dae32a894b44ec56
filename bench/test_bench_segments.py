"""The segments family: BatchNorm, GroupNorm, InstanceNorm, channels first."""

FAMILY = "segments"


def test_segments(measure, case):
    measure(case)
