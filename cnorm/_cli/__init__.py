"""The command line, ``cnorm`` or ``python -m cnorm``.

::

    cnorm          which kernels this machine runs, with how many threads
    cnorm check    every kernel here against the reference, in seconds
    cnorm bench    the norms here against NumPy, and torch where installed
    cnorm stats    count, mean, deviation and extremes of the arrays of a file
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import cnorm
from cnorm._cli import bench, check, stats
from cnorm._config import config
from cnorm._start import program

__all__ = ["main"]

# What a shell shows for a program that SIGPIPE or SIGINT ended.
CLOSED_PIPE, INTERRUPTED = 141, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 where a check failed, 2 of a file unread."""
    try:
        status = _run(_parser().parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        # Python flushes at its exit once more, into what is left of the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _run(options: argparse.Namespace) -> int:
    as_json = getattr(options, "json", False)
    if options.command is None:
        _print_json(config()) if as_json else cnorm.show_config()
        return 0
    if options.command == "check":
        report, render = check.run(), check.render
    elif options.command == "bench":
        report, render = bench.run(options.threads), bench.render
    else:
        try:
            report = stats.run(
                options.file, options.axis, options.nan_policy, options.ddof, options.key
            )
        except stats.Unreadable as error:
            print(f"cnorm: {error}", file=sys.stderr)
            return 2
        for name, what in report["left_out"].items():
            print(
                f"cnorm: {name} holds {what}, left out; --key NAME reads one array of a file",
                file=sys.stderr,
            )
        render = stats.render
    _print_json({"config": config(), **report}) if as_json else print(render(report))
    return 0 if report.get("passed", True) else 1


def _parser() -> argparse.ArgumentParser:
    # Without a default: that of a command would undo what was given before the command.
    as_json = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    as_json.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser = argparse.ArgumentParser(
        program() or "python -m cnorm",
        description="Without a command: print the configuration, as bug reports need it.",
        parents=[as_json],
    )
    parser.add_argument("--version", action="version", version=f"cnorm {cnorm.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="{check,bench,stats}")
    commands.add_parser("check", parents=[as_json], help="verify every kernel here, in seconds")
    words = "time the norms here, in about 10 seconds on a quiet machine"
    timing = commands.add_parser("bench", parents=[as_json], help=words, description=words)
    timing.add_argument(
        "--threads", type=_threads, metavar="N", help="how many threads cnorm and torch get"
    )
    data = commands.add_parser(
        "stats", parents=[as_json], help="count, mean, std, min and max of the arrays of a file"
    )
    data.add_argument("file", metavar="FILE", help=".npy, .npz, a folder of zarr, or an image")
    data.add_argument(
        "--axis", type=_axes, metavar="AXES", help="what is reduced, as 0 or 0,1,2; default: all"
    )
    data.add_argument("--key", metavar="NAME", help="one array of a file of several")
    data.add_argument(
        "--ddof", type=float, default=0.0, help="1 for the unbiased deviation; default: 0"
    )
    data.add_argument(
        "--nan-policy",
        choices=["propagate", "omit", "raise"],
        default="propagate",
        help="what NaN does: makes its unit NaN, does not count, or raises",
    )
    return parser


def _axes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        message = f"axes must be whole numbers, as 0 or 0,1,2, but got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _threads(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        message = f"number of threads must be a whole number, but got {text!r}"
        raise argparse.ArgumentTypeError(message) from None
    try:
        with cnorm.num_threads(number):
            return number
    except ValueError as error:
        message = str(error).removeprefix("num_threads: ")
        raise argparse.ArgumentTypeError(message) from None


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report, indent=2, default=str))
