"""The caches of this machine: kernels/schedule.pxd computes the schedule of a call from them."""

import os

# Bytes of data cache: L1 and L2 of one core, and the L3 that all cores share. Where nobody says.
DEFAULT = (32 << 10, 1 << 20, 32 << 20)

# A virtual machine may report the L3 of a whole server, which its neighbours use too. No more than
# this is counted on for each processor that it has.
L3_PER_PROCESSOR = 32 << 20

_NAMES = ("SC_LEVEL1_DCACHE_SIZE", "SC_LEVEL2_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _from_sysconf():
    """The three sizes as the C library knows them; 0 for one that it does not know."""
    if not hasattr(os, "sysconf"):  # Windows
        return 0, 0, 0
    known = os.sysconf_names
    return tuple(max(0, os.sysconf(name)) if name in known else 0 for name in _NAMES)


def _from_sysfs(folder="/sys/devices/system/cpu/cpu0/cache"):
    """The three sizes as Linux describes the first processor; 0 for one that it does not."""
    sizes = [0, 0, 0]
    for index in (0, 2, 3):  # index 1 holds instructions
        try:
            with open(f"{folder}/index{index}/level") as file:
                level = int(file.read())
            with open(f"{folder}/index{index}/size") as file:
                size = file.read().strip()
            number = int(size[:-1]) * _UNITS[size[-1]] if size[-1] in _UNITS else int(size)
            sizes[level - 1] = number
        except (OSError, ValueError, IndexError):
            continue
    return tuple(sizes)


def caches(processors):
    """Bytes of L1 and L2 of one core, and of L3 as far as `processors` of them may count on it."""
    sizes = _from_sysconf()
    if 0 in sizes:
        sizes = tuple(a or b for a, b in zip(sizes, _from_sysfs(), strict=True))
    l1, l2, l3 = (size or default for size, default in zip(sizes, DEFAULT, strict=True))
    return l1, l2, max(l2, min(l3, L3_PER_PROCESSOR * max(1, processors)))
