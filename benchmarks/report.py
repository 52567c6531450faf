"""The goals of a trigger, whether a run meets them, and its tables and raw figures.

A goal is a ratio to another system in the same run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from . import systems
from .command import Figures, machine, spread, table, verdict, versions
from .systems import System

#: The figures of each system, by its name, one for each repetition.
Results = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ``figure`` of ``ours`` is at most ``bound`` times that of ``peer``; a rate, at least."""

    name: str
    ours: System
    figure: str
    bound: float
    peer: System

    @property
    def is_rate(self) -> bool:
        return self.figure.endswith("_per_second")

    @property
    def promise(self) -> str:
        return f"{'>=' if self.is_rate else '<='} {self.bound:g} x {self.peer.label}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The ratios of all repetitions; their median decides."""

    goal: Goal
    ratios: tuple[float, ...]

    @property
    def is_met(self) -> bool:
        ratio, bound = median(self.ratios), self.goal.bound
        return ratio >= bound if self.goal.is_rate else ratio <= bound


_GOALS = (
    Goal("A1", systems.MEMORY, "hand_over_1_p50", 0.5, systems.EXECUTOR),
    Goal("A1", systems.MEMORY, "hand_over_8_p50", 0.5, systems.EXECUTOR),
    Goal("A1", systems.MEMORY, "hand_over_8_p99", 0.5, systems.EXECUTOR),
    Goal("A1", systems.MEMORY, "hand_over_1_p50", 1 / 40, systems.POST),
    Goal("A1", systems.MEMORY, "hand_over_8_p50", 1 / 40, systems.POST),
    Goal("A2", systems.MEMORY, "hand_over_1_p50", 0.05, systems.CELERY),
    Goal("A2", systems.MEMORY, "hand_over_8_p50", 0.02, systems.CELERY),
    Goal("A3", systems.MEMORY, "added_p50", 0.6, systems.EXECUTOR),
    Goal("A3", systems.MEMORY, "added_p50", 0.4, systems.HUEY),
    Goal("A4", systems.SQLITE, "hand_over_1_p50", 0.6, systems.HUEY),
    Goal("A4", systems.SQLITE_WORKERS, "hand_over_1_p50", 0.6, systems.HUEY),
    Goal("A5", systems.SQLITE, "hand_over_8_p50", 0.65, systems.HUEY),
    Goal("A5", systems.SQLITE, "hand_over_8_p50", 0.3, systems.SQLITE_HUEY),
    Goal("A5", systems.SQLITE_WORKERS, "hand_over_8_p50", 0.65, systems.HUEY),
    Goal("A5", systems.SQLITE_WORKERS, "hand_over_8_p50", 0.3, systems.SQLITE_HUEY),
    Goal("A6", systems.SQLITE_FULL, "hand_over_1_p50", 1.0, systems.SQLITE_HUEY),
    Goal("A6", systems.SQLITE_FULL, "hand_over_8_p50", 0.3, systems.SQLITE_HUEY),
    Goal("A6", systems.SQLITE_FULL, "hand_over_8_p99", 0.5, systems.SQLITE_HUEY),
    Goal("A7", systems.POSTGRES, "hand_over_1_p50", 0.4, systems.PROCRASTINATE),
    Goal("A7", systems.POSTGRES, "hand_over_1_p50", 0.75, systems.POSTGRES_HUEY),
    Goal("A7", systems.POSTGRES_WORKERS, "hand_over_1_p50", 0.4, systems.PROCRASTINATE),
    Goal("A7", systems.POSTGRES_WORKERS, "hand_over_1_p50", 0.75, systems.POSTGRES_HUEY),
    Goal("A8", systems.SQLITE_JOINED, "added_in_view_p50", 0.3, systems.SQLITE),
    Goal("A8", systems.POSTGRES_JOINED, "added_in_view_p50", 0.6, systems.POSTGRES),
    Goal("A9", systems.MEMORY, "hand_over_8_requests_per_second", 0.85, systems.EXECUTOR),
    Goal("A9", systems.MEMORY, "hand_over_8_requests_per_second", 1.0, systems.HUEY),
    Goal("B1", systems.SQLITE_WORKERS, "pickup_p50", 0.8, systems.HUEY),
    Goal("B1", systems.SQLITE_WORKERS, "pickup_p50", 0.25, systems.CELERY),
    Goal("B2", systems.MEMORY, "pickup_p50", 0.55, systems.POST),
    Goal("B2", systems.MEMORY, "pickup_p50", 1.35, systems.HUEY),
    Goal("B2", systems.MEMORY, "pickup_p50", 0.4, systems.CELERY),
    Goal("B3", systems.POSTGRES, "pickup_p50", 0.5, systems.PROCRASTINATE),
    Goal("B3", systems.POSTGRES_WORKERS, "pickup_p50", 0.5, systems.PROCRASTINATE),
    Goal("C1", systems.SQLITE_WORKERS, "tasks_per_second", 2.2, systems.HUEY),
    Goal("C1", systems.SQLITE_WORKERS, "tasks_per_second", 3.0, systems.SQLITE_HUEY),
    Goal("C1", systems.SQLITE_WORKERS, "tasks_per_second", 10.0, systems.CELERY),
    Goal("C2", systems.SQLITE_WORKERS, "cpu_seconds_per_1000", 0.65, systems.SQLITE_HUEY),
    Goal("C2", systems.SQLITE_WORKERS, "cpu_seconds_per_1000", 0.45, systems.HUEY),
    Goal("C3", systems.MEMORY, "tasks_per_second", 3.0, systems.POST),
    Goal("C3", systems.MEMORY, "tasks_per_second", 0.75, systems.HUEY),
    Goal("C3", systems.MEMORY, "tasks_per_second", 3.0, systems.CELERY),
    Goal("C5", systems.POSTGRES_WORKERS, "tasks_per_second", 3.0, systems.PROCRASTINATE),
    Goal("C5", systems.POSTGRES_WORKERS, "tasks_per_second", 1.2, systems.POSTGRES_HUEY),
    Goal("D1", systems.MEMORY, "memory", 1.06, systems.EXECUTOR),
    Goal("D1", systems.MEMORY, "memory", 0.35, systems.CELERY),
    Goal("D2", systems.SQLITE_WORKERS, "memory", 0.9, systems.SQLITE_HUEY),
    Goal("D2", systems.SQLITE_WORKERS, "memory", 0.75, systems.HUEY),
)


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

#: The figures that count launches, by how often the receiver of each ran.
COUNTS = ("launched", "once", "twice", "never")


def judge(results: Results) -> list[Outcome]:
    """Return the outcome of each goal of which both systems were measured."""
    return [
        _outcome(goal, results)
        for goal in _GOALS
        if goal.ours.name in results and goal.peer.name in results
    ]


def text(measured: Sequence[System], results: Results, outcomes: Sequence[Outcome]) -> str:
    """Return the tables of medians, of goals and of counts."""
    medians = [
        f"{title}; medians of the repetitions\n\n{_medians(measured, results, columns)}"
        for title, columns in _TABLES.items()
    ]
    goals = [
        f"Goals of {system.label}: ratio by repetition, median (min-max)\n\n{_goals(own)}"
        for system in measured
        if (own := [outcome for outcome in outcomes if outcome.goal.ours == system])
    ]
    totals = f"Launches, and how often the receiver of each ran\n\n{_totals(measured, results)}"
    return "\n\n".join((*medians, *goals, totals))


def write_json(
    path: Path,
    load: Mapping[str, int],
    measured: Sequence[System],
    results: Results,
    outcomes: Sequence[Outcome],
) -> None:
    goals = [
        {
            "goal": outcome.goal.name,
            "ours": outcome.goal.ours.name,
            "figure": outcome.goal.figure,
            "promise": outcome.goal.promise,
            "ratios": outcome.ratios,
            "met": outcome.is_met,
        }
        for outcome in outcomes
    ]
    raw = {
        "machine": machine(),
        "versions": versions(measured),
        "load": load,
        "figures": results,
        "goals": goals,
    }
    path.write_text(json.dumps(raw, indent=1) + "\n")


def _outcome(goal: Goal, results: Results) -> Outcome:
    pairs = zip(results[goal.ours.name], results[goal.peer.name], strict=True)
    return Outcome(
        goal, tuple(_ratio(ours[goal.figure], peer[goal.figure]) for ours, peer in pairs)
    )


def _ratio(ours: float, peer: float) -> float:
    # Noise can take an added time below nothing: no multiple of that says anything.
    return ours / peer if peer > 0 else float("nan")


def _medians(measured: Sequence[System], results: Results, columns: Sequence[Column]) -> str:
    rows = [
        [system.label, *(_median(results[system.name], column) for column in columns)]
        for system in measured
    ]
    return table(["", *(column.heading for column in columns)], rows)


def _median(repetitions: Sequence[Figures], column: Column) -> str:
    values = [figures[column.figure] for figures in repetitions if column.figure in figures]
    return f"{median(values):,.{column.digits}f}" if values else "-"


def _goals(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            outcome.goal.name,
            _WORDS[outcome.goal.figure],
            outcome.goal.promise,
            spread(outcome.ratios),
            verdict(is_met=outcome.is_met),
        ]
        for outcome in outcomes
    ]
    return table(["goal", "", "promise", "ratio", ""], rows)


def _totals(measured: Sequence[System], results: Results) -> str:
    rows = [
        [system.label, *(_total(results[system.name], count) for count in COUNTS)]
        for system in measured
        if system.defers
    ]
    return table(["", *COUNTS], rows)


def _total(repetitions: Sequence[Figures], count: str) -> str:
    return f"{sum(figures[count] for figures in repetitions):,.0f}"
