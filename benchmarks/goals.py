"""The goals, as ratios to other systems in the same run, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .ours import (
    MEMORY,
    POSTGRES,
    POSTGRES_JOINED,
    POSTGRES_WORKERS,
    SQLITE,
    SQLITE_FULL,
    SQLITE_JOINED,
    SQLITE_WORKERS,
)
from .peers import CELERY, EXECUTOR, HUEY, POST, POSTGRES_HUEY, PROCRASTINATE, SQLITE_HUEY
from .series import Figures
from .system import System

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
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def is_met(self) -> bool:
        bound = self.goal.bound
        return self.ratio >= bound if self.goal.is_rate else self.ratio <= bound


GOALS = (
    Goal("A1", MEMORY, "hand_over_1_p50", 0.5, EXECUTOR),
    Goal("A1", MEMORY, "hand_over_8_p50", 0.5, EXECUTOR),
    Goal("A1", MEMORY, "hand_over_8_p99", 0.5, EXECUTOR),
    Goal("A1", MEMORY, "hand_over_1_p50", 1 / 40, POST),
    Goal("A1", MEMORY, "hand_over_8_p50", 1 / 40, POST),
    Goal("A2", MEMORY, "hand_over_1_p50", 0.05, CELERY),
    Goal("A2", MEMORY, "hand_over_8_p50", 0.02, CELERY),
    Goal("A3", MEMORY, "added_p50", 0.6, EXECUTOR),
    Goal("A3", MEMORY, "added_p50", 0.4, HUEY),
    Goal("A4", SQLITE, "hand_over_1_p50", 0.6, HUEY),
    Goal("A4", SQLITE_WORKERS, "hand_over_1_p50", 0.6, HUEY),
    Goal("A5", SQLITE, "hand_over_8_p50", 0.65, HUEY),
    Goal("A5", SQLITE, "hand_over_8_p50", 0.3, SQLITE_HUEY),
    Goal("A5", SQLITE_WORKERS, "hand_over_8_p50", 0.65, HUEY),
    Goal("A5", SQLITE_WORKERS, "hand_over_8_p50", 0.3, SQLITE_HUEY),
    Goal("A6", SQLITE_FULL, "hand_over_1_p50", 1.0, SQLITE_HUEY),
    Goal("A6", SQLITE_FULL, "hand_over_8_p50", 0.3, SQLITE_HUEY),
    Goal("A6", SQLITE_FULL, "hand_over_8_p99", 0.5, SQLITE_HUEY),
    Goal("A7", POSTGRES, "hand_over_1_p50", 0.4, PROCRASTINATE),
    Goal("A7", POSTGRES, "hand_over_1_p50", 0.75, POSTGRES_HUEY),
    Goal("A7", POSTGRES_WORKERS, "hand_over_1_p50", 0.4, PROCRASTINATE),
    Goal("A7", POSTGRES_WORKERS, "hand_over_1_p50", 0.75, POSTGRES_HUEY),
    Goal("A8", SQLITE_JOINED, "added_in_view_p50", 0.3, SQLITE),
    Goal("A8", POSTGRES_JOINED, "added_in_view_p50", 0.6, POSTGRES),
    Goal("A9", MEMORY, "hand_over_8_requests_per_second", 0.85, EXECUTOR),
    Goal("A9", MEMORY, "hand_over_8_requests_per_second", 1.0, HUEY),
    Goal("B1", SQLITE_WORKERS, "pickup_p50", 0.8, HUEY),
    Goal("B1", SQLITE_WORKERS, "pickup_p50", 0.25, CELERY),
    Goal("B2", MEMORY, "pickup_p50", 0.55, POST),
    Goal("B2", MEMORY, "pickup_p50", 1.35, HUEY),
    Goal("B2", MEMORY, "pickup_p50", 0.4, CELERY),
    Goal("B3", POSTGRES, "pickup_p50", 0.5, PROCRASTINATE),
    Goal("B3", POSTGRES_WORKERS, "pickup_p50", 0.5, PROCRASTINATE),
    Goal("C1", SQLITE_WORKERS, "tasks_per_second", 2.2, HUEY),
    Goal("C1", SQLITE_WORKERS, "tasks_per_second", 3.0, SQLITE_HUEY),
    Goal("C1", SQLITE_WORKERS, "tasks_per_second", 10.0, CELERY),
    Goal("C2", SQLITE_WORKERS, "cpu_seconds_per_1000", 0.65, SQLITE_HUEY),
    Goal("C2", SQLITE_WORKERS, "cpu_seconds_per_1000", 0.45, HUEY),
    Goal("C3", MEMORY, "tasks_per_second", 3.0, POST),
    Goal("C3", MEMORY, "tasks_per_second", 0.75, HUEY),
    Goal("C3", MEMORY, "tasks_per_second", 3.0, CELERY),
    Goal("C5", POSTGRES_WORKERS, "tasks_per_second", 3.0, PROCRASTINATE),
    Goal("C5", POSTGRES_WORKERS, "tasks_per_second", 1.2, POSTGRES_HUEY),
    Goal("D1", MEMORY, "memory", 1.06, EXECUTOR),
    Goal("D1", MEMORY, "memory", 0.35, CELERY),
    Goal("D2", SQLITE_WORKERS, "memory", 0.9, SQLITE_HUEY),
    Goal("D2", SQLITE_WORKERS, "memory", 0.75, HUEY),
)


def judge(results: Results) -> list[Outcome]:
    """Return the outcome of each goal of which both systems were measured."""
    return [
        _outcome(goal, results)
        for goal in GOALS
        if goal.ours.name in results and goal.peer.name in results
    ]


def _outcome(goal: Goal, results: Results) -> Outcome:
    pairs = zip(results[goal.ours.name], results[goal.peer.name], strict=True)
    return Outcome(
        goal, tuple(_ratio(ours[goal.figure], peer[goal.figure]) for ours, peer in pairs)
    )


def _ratio(ours: float, peer: float) -> float:
    # Noise can take an added time below nothing: no multiple of that says anything.
    return ours / peer if peer > 0 else float("nan")
