"""The command line.

::

    python -m cnorm          which kernels this machine runs, with how many threads
    python -m cnorm check    every kernel here against the reference, in seconds
    python -m cnorm bench    the norms here against NumPy, and torch where installed
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import cnorm
from cnorm._cli import bench, check
from cnorm._config import config

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 1 where a check failed."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        _print_json(config()) if options.json else cnorm.show_config()
        return 0
    if options.command == "check":
        report, render = check.run(), check.render
    else:
        report, render = bench.run(options.threads), bench.render
    _print_json({"config": config(), **report}) if options.json else print(render(report))
    return 0 if report.get("passed", True) else 1


def _parser() -> argparse.ArgumentParser:
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, for programs"
    )
    parser = argparse.ArgumentParser(
        "python -m cnorm",
        description="Without a command: print the configuration, as bug reports need it.",
        parents=[as_json],
    )
    parser.set_defaults(json=False)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("check", parents=[as_json], help="verify every kernel here, in seconds")
    timing = commands.add_parser("bench", parents=[as_json], help="time the norms here")
    timing.add_argument("--threads", type=_positive, help="how many threads everybody gets")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report, indent=2, default=str))
