"""The plain-text tables of a run, and its raw figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .goals import Outcome, Results
from .machine import machine, versions
from .series import Figures, Load
from .system import System
from .table import spread, table


class Column(NamedTuple):
    heading: str
    figure: str
    digits: int = 0


#: The tables of medians, each with its title.
_TABLES = {
    "Hand-over in a closed loop, in microseconds": (
        Column("1 conn. p50", "hand_over_1_p50"),
        Column("p95", "hand_over_1_p95"),
        Column("p99", "hand_over_1_p99"),
        Column("8 conn. p50", "hand_over_8_p50"),
        Column("p95", "hand_over_8_p95"),
        Column("p99", "hand_over_8_p99"),
        Column("3 launches p50", "hand_over_of_3_p50"),
        Column("p99", "hand_over_of_3_p99"),
    ),
    "One at a time on an idle server, in microseconds": (
        Column("no-op p50", "noop_p50"),
        Column("trigger p50", "response_p50"),
        Column("added p50", "added_p50"),
        Column("added in the view p50", "added_in_view_p50"),
        Column("pickup p50", "pickup_p50"),
        Column("p99", "pickup_p99"),
    ),
    "Under load, and at rest, without broker and database server": (
        Column("requests/s, 8 conn.", "hand_over_8_requests_per_second"),
        Column("tasks/s", "tasks_per_second"),
        Column("CPU seconds/1000 tasks", "cpu_seconds_per_1000", digits=2),
        Column("memory, MB", "memory", digits=1),
    ),
}
#: What the goals' figures are called.
_WORDS = {
    "hand_over_1_p50": "hand-over p50, 1 connection",
    "hand_over_8_p50": "hand-over p50, 8 connections",
    "hand_over_8_p99": "hand-over p99, 8 connections",
    "hand_over_8_requests_per_second": "requests per second, 8 connections",
    "added_p50": "added to the response, p50",
    "added_in_view_p50": "added in the view, p50",
    "pickup_p50": "pickup p50",
    "tasks_per_second": "tasks per second",
    "cpu_seconds_per_1000": "CPU time of a task",
    "memory": "memory at rest",
}
_COUNTS = ("launched", "once", "twice", "never")


def text(systems: Sequence[System], results: Results, outcomes: Sequence[Outcome]) -> str:
    """Return the tables of medians, of goals and of counts."""
    medians = [
        f"{title}; medians of the repetitions\n\n{_medians(systems, results, columns)}"
        for title, columns in _TABLES.items()
    ]
    goals = [
        f"Goals of {system.label}: ratio by repetition, median (min-max)\n\n{_goals(own)}"
        for system in systems
        if (own := [outcome for outcome in outcomes if outcome.goal.ours == system])
    ]
    totals = f"Launches, and how often the receiver of each ran\n\n{_totals(systems, results)}"
    return "\n\n".join((*medians, *goals, totals))


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
                "ours": outcome.goal.ours.name,
                "figure": outcome.goal.figure,
                "promise": outcome.goal.promise,
                "ratios": outcome.ratios,
                "met": outcome.is_met,
            }
            for outcome in outcomes
        ],
    }
    path.write_text(json.dumps(raw, indent=1) + "\n")


def _medians(systems: Sequence[System], results: Results, columns: Sequence[Column]) -> str:
    rows = [
        [system.label, *(_median(results[system.name], column) for column in columns)]
        for system in systems
    ]
    return table(["", *(column.heading for column in columns)], rows)


def _median(repetitions: Sequence[Figures], column: Column) -> str:
    values = [figures[column.figure] for figures in repetitions if column.figure in figures]
    return f"{median(values):,.{column.digits}f}" if values else "-"


def _goals(outcomes: Sequence[Outcome]) -> str:
    return table(
        ["goal", "", "promise", "ratio", ""],
        [
            [
                outcome.goal.name,
                _WORDS[outcome.goal.figure],
                outcome.goal.promise,
                spread(outcome.ratios),
                "met" if outcome.is_met else "missed",
            ]
            for outcome in outcomes
        ],
    )


def _totals(systems: Sequence[System], results: Results) -> str:
    rows = [
        [system.label, *(_total(results[system.name], count) for count in _COUNTS)]
        for system in systems
        if system.defers
    ]
    return table(["", *_COUNTS], rows)


def _total(repetitions: Sequence[Figures], count: str) -> str:
    return f"{sum(figures[count] for figures in repetitions):,.0f}"
