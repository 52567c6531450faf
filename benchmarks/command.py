"""What the four commands share: options, the systems that can run here, rounds, tables."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import TypeVar

from .systems import System, unavailable

T = TypeVar("T")

#: What one repetition measures of one system, by the names of the figures.
Figures = dict[str, float]

_SOFTWARE = ("Flask", "Werkzeug", "blinker", "itsdangerous", "gunicorn")


def parser_of(module: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m module``, whose help is its docstring."""
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
        absent = [package for package in system.packages if not _is_installed(package)]
        missing = f"{' and '.join(absent)} not installed" if absent else unavailable(system.backend)
        if missing is None:
            found.append(system)
        else:
            print(f"Left out {system.label}: {missing}.", file=sys.stderr)
    return found


def introduce(systems: Iterable[System]) -> None:
    """Print where the figures are from."""
    print(f"Machine: {machine()}")
    words = ", ".join(map(" ".join, versions(systems).items()))
    print(fill(f"Versions: {words}", width=120), flush=True)


def machine() -> str:
    """Say in one line where this runs, and how busy it was when asked."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, load {load}"


def versions(systems: Iterable[System]) -> dict[str, str]:
    needed = [package for system in systems for package in system.packages]
    names = dict.fromkeys((*_SOFTWARE, *needed))
    return {"Python": platform.python_version(), **{name: version(name) for name in names}}


def in_rounds(
    systems: Sequence[System], repetitions: int, measure: Callable[[System], T]
) -> dict[str, list[T]]:
    """Return what ``measure`` finds of each system, by its name, one after the other each round."""
    results: dict[str, list[T]] = {system.name: [] for system in systems}
    for repetition in range(1, repetitions + 1):
        for system in systems:
            started = time.monotonic()
            results[system.name].append(measure(system))
            seconds = time.monotonic() - started
            print(f"{repetition}/{repetitions} {system.label}: {seconds:.0f} s", file=sys.stderr)
    return results


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def spread(ratios: Sequence[float]) -> str:
    """Return the median, the least and the greatest of ``ratios``."""
    return f"{median(ratios):.3g} ({min(ratios):.3g}-{max(ratios):.3g})"


def verdict(*, is_met: bool) -> str:
    return "met" if is_met else "missed"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in plain text: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    is_figure = [all(map(_is_figure, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = zip(row, widths, is_figure, strict=True)
        aligned = (cell.rjust(width) if is_f else cell.ljust(width) for cell, width, is_f in cells)
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _is_figure(cell: str) -> bool:
    return cell == "-" or cell.lstrip("-").replace(",", "").replace(".", "").isdigit()


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
