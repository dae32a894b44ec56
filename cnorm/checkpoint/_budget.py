"""What reading one file may cost, however the file describes its contents.

A few kilobytes can describe lists of lists without end, or one tensor under a million long names.
Everything that a file makes the reader do or keep is therefore paid for in steps, of which there is
a fixed number. A step stands for about a microsecond and at most a hundred bytes.
"""

from __future__ import annotations

from cnorm.checkpoint._errors import UnsafeCheckpointError

# A tensor of a torch file takes about 70 steps and at least as many bytes: 42 steps to describe it,
# 28 for its name and its array. The limit is thus at 40,000 tensors, and lower in small files.
MAX_STEPS = 3_000_000
_FREE_STEPS, _STEPS_PER_BYTE = 10_000, 16
CHARACTERS = 8  # in a step: at most 4 bytes each, in the name and in a copy of its end


class Budget:
    """The steps that are left of those for a pickle of ``size`` bytes."""

    def __init__(self, size: int = MAX_STEPS) -> None:
        self._limit = min(MAX_STEPS, _FREE_STEPS + _STEPS_PER_BYTE * size)
        self.left = self._limit

    def spend(self, steps: int, complaint: str) -> None:
        """Take steps, or refuse the file."""
        self.left -= steps
        if self.left < 0:
            raise UnsafeCheckpointError(f"{complaint} (the limit is {self._limit} steps)")
