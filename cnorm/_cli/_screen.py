"""What the commands show: a progress bar on stderr, a table on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], title: str) -> Iterator[T]:
    """Show how far the loop is: by tqdm, or plainly without it; not at all off a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _plain(items, title)
    return iter(tqdm(items, desc=title, disable=None, leave=False))


def _plain(items: Sequence[T], title: str, width: int = 30) -> Iterator[T]:
    show = sys.stderr.isatty()
    for done, item in enumerate(items):
        if show:
            bar = "#" * (width * done // len(items))
            print(f"\r{title} [{bar:{width}}] {done}/{len(items)}", end="", file=sys.stderr)
        yield item
    if show:
        print("\r" + " " * (len(title) + width + 20) + "\r", end="", file=sys.stderr)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they need to be, the first to the left, the others to the right."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    )
