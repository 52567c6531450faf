"""The plain-text tables of a run, and its raw figures as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

from .goals import Outcome, Results
from .series import Figures, Load
from .systems import System

#: The table of times: a heading and the figure below it.
_TIMES = {
    "hand-over p50": "hand_over_1_p50",
    "p95": "hand_over_1_p95",
    "p99": "hand_over_1_p99",
    "8 conn. p50": "hand_over_8_p50",
    "p95 ": "hand_over_8_p95",
    "p99 ": "hand_over_8_p99",
    "pickup p50": "pickup_p50",
    "p99  ": "pickup_p99",
}
_REST = {
    "no-op p50": "noop_p50",
    "trigger p50": "response_p50",
    "added p50": "added_p50",
    "paced hand-over": "paced_hand_over_p50",
    "tasks/s": "tasks_per_second",
}
_COUNTS = ("launched", "once", "twice", "never")

_SOFTWARE = ("Flask", "Werkzeug", "blinker", "itsdangerous", "gunicorn")


def machine() -> str:
    """Say in one line where this runs, and how busy it was when asked."""
    model = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, load {load}"


def versions(systems: Iterable[System]) -> dict[str, str]:
    measured = [system.distribution for system in systems if system.distribution is not None]
    names = dict.fromkeys((*_SOFTWARE, *measured))
    return {"Python": platform.python_version(), **{name: version(name) for name in names}}


def text(systems: Sequence[System], results: Results, outcomes: Sequence[Outcome]) -> str:
    """Return the tables of medians, of goals and of counts."""
    return "\n\n".join(
        (
            "Medians of the repetitions; times in microseconds",
            _medians(systems, results, _TIMES),
            _medians(systems, results, _REST),
            "Goals: ratio by repetition, median (min-max)",
            _goals(outcomes),
            "Launches, and how often the receiver of each ran",
            _totals(systems, results),
        )
    )


def write_json(
    path: Path, load: Load, systems: Sequence[System], results: Results, outcomes: Sequence[Outcome]
) -> None:
    raw = {
        "machine": machine(),
        "versions": versions(systems),
        "load": asdict(load),
        "figures": results,
        "goals": [
            {
                "goal": outcome.goal.name,
                "what": outcome.goal.what,
                "promise": outcome.goal.promise,
                "ratios": outcome.ratios,
                "met": outcome.is_met,
            }
            for outcome in outcomes
        ],
    }
    path.write_text(json.dumps(raw, indent=1) + "\n")


def _medians(systems: Sequence[System], results: Results, columns: dict[str, str]) -> str:
    rows = [
        [system.label, *(_median(results[system.module], figure) for figure in columns.values())]
        for system in systems
    ]
    return _table(["", *columns], rows)


def _median(repetitions: Sequence[Figures], figure: str) -> str:
    values = [figures[figure] for figures in repetitions if figure in figures]
    return f"{median(values):,.0f}" if values else "-"


def _goals(outcomes: Sequence[Outcome]) -> str:
    return _table(
        ["goal", "", "promise", "ratio", ""],
        [
            [
                outcome.goal.name,
                outcome.goal.what,
                outcome.goal.promise,
                f"{outcome.ratio:.3g} ({min(outcome.ratios):.3g}-{max(outcome.ratios):.3g})",
                "met" if outcome.is_met else "missed",
            ]
            for outcome in outcomes
        ],
    )


def _totals(systems: Sequence[System], results: Results) -> str:
    rows = [
        [system.label, *(_total(results[system.module], count) for count in _COUNTS)]
        for system in systems
        if system.defers
    ]
    return _table(["", *_COUNTS], rows)


def _total(repetitions: Sequence[Figures], count: str) -> str:
    return f"{sum(figures[count] for figures in repetitions):,.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out in columns: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    is_figure = [all(_is_figure(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = zip(row, widths, is_figure, strict=True)
        lines.append(
            "  ".join(
                cell.rjust(width) if figure else cell.ljust(width) for cell, width, figure in cells
            )
        )
    return "\n".join(line.rstrip() for line in lines)


def _is_figure(cell: str) -> bool:
    return cell == "-" or cell.lstrip("-").replace(",", "").isdigit()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
