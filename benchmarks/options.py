"""What the commands share: each explains itself, and measures what can run here, in rounds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from textwrap import fill
from typing import TypeVar

from .machine import machine, versions
from .system import System

T = TypeVar("T")


def parser_of(module: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m module``, which explains itself with its docstring."""
    description, _, words = (text or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=words,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--repetitions", type=int, default=3, metavar="N", help="rounds (default: %(default)s)")
    add("--quick", action="store_true", help="one short round, to see that it works")
    return parser


def runnable(systems: Iterable[System]) -> list[System]:
    """Return those of ``systems`` that can run here, and say why the others can't."""
    found = []
    for system in systems:
        if (reason := system.missing) is not None:
            print(f"Left out {system.label}: {reason}.", file=sys.stderr)
        else:
            found.append(system)
    return found


def introduce(systems: Iterable[System]) -> None:
    """Print where the figures are from."""
    print(f"Machine: {machine()}")
    words = ", ".join(map(" ".join, versions(systems).items()))
    print(fill(f"Versions: {words}", width=120), flush=True)


def in_rounds(
    systems: Iterable[System], repetitions: int, measure: Callable[[System], T]
) -> dict[str, list[T]]:
    """Return what ``measure`` finds of each system, by its name, one after the other each round."""
    systems = list(systems)
    results: dict[str, list[T]] = {system.name: [] for system in systems}
    for repetition in range(1, repetitions + 1):
        for system in systems:
            started = time.monotonic()
            results[system.name].append(measure(system))
            seconds = time.monotonic() - started
            print(f"{repetition}/{repetitions} {system.label}: {seconds:.0f} s", file=sys.stderr)
    return results
