"""What tests know of the schedule: the constants and strategies of the kernels, from their text."""

import re
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "cnorm" / "kernels"


def _strategies():
    body = (KERNELS / "job.pxd").read_text().partition("cdef enum Strategy:")[2]
    found = re.findall(r"^ +(\w+) = (\d+)", body.partition("\n\n")[0], re.MULTILINE)
    return {name: int(value) for name, value in found}


STRATEGIES = _strategies()  # every value of the enum, by name


def constant(name):
    """A constant of tuning.h."""
    return int(re.search(rf"\b{name} = (\d+),", (KERNELS / "tuning.h").read_text()).group(1))
