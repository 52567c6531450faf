"""The goals, as ratios to other systems in the same run, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .series import Figures
from .systems import CELERY, EXECUTOR, HUEY, OURS, OUTBOX, POST, WORKER, System

#: The figures of each system, by its module's name, one for each repetition.
Results = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True, slots=True)
class Goal:
    """Our ``figure`` is at most, or ``at_least``, ``bound`` times that of ``peer``."""

    name: str
    what: str
    figure: str
    peer: System
    bound: float
    at_least: bool = False
    ours: System = OURS

    @property
    def promise(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g} x {self.peer.label}"


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
        return self.ratio >= bound if self.goal.at_least else self.ratio <= bound


GOALS = (
    Goal("A1", "hand-over p50, 1 connection", "hand_over_1_p50", EXECUTOR, 0.5),
    Goal("A1", "hand-over p50, 8 connections", "hand_over_8_p50", EXECUTOR, 0.5),
    Goal("A1", "hand-over p99, 8 connections", "hand_over_8_p99", EXECUTOR, 0.5),
    Goal("A1", "hand-over p50, 1 connection", "hand_over_1_p50", POST, 1 / 40),
    Goal("A1", "hand-over p50, 8 connections", "hand_over_8_p50", POST, 1 / 40),
    Goal("A3", "added to the response, p50", "added_p50", EXECUTOR, 0.6),
    Goal("A3", "added to the response, p50", "added_p50", HUEY, 0.4),
    Goal("B2", "pickup p50", "pickup_p50", POST, 0.55),
    Goal("B2", "pickup p50", "pickup_p50", HUEY, 1.35),
    Goal("B2", "pickup p50", "pickup_p50", CELERY, 0.4),
    Goal("C3", "tasks per second", "tasks_per_second", POST, 3.0, at_least=True),
    Goal("C3", "tasks per second", "tasks_per_second", HUEY, 0.75, at_least=True),
    Goal("C3", "tasks per second", "tasks_per_second", CELERY, 3.0, at_least=True),
    Goal("A4", "durable hand-over p50, 1 connection", "hand_over_1_p50", HUEY, 0.6, ours=OUTBOX),
    Goal("A5", "durable hand-over p50, 8 connections", "hand_over_8_p50", HUEY, 0.65, ours=OUTBOX),
    Goal("B1", "worker's pickup p50", "pickup_p50", HUEY, 0.8, ours=WORKER),
    Goal("B1", "worker's pickup p50", "pickup_p50", CELERY, 0.25, ours=WORKER),
    Goal(
        *("C1", "workers' tasks per second", "tasks_per_second", HUEY, 2.2),
        at_least=True,
        ours=WORKER,
    ),
    Goal(
        *("C1", "workers' tasks per second", "tasks_per_second", CELERY, 10.0),
        at_least=True,
        ours=WORKER,
    ),
)


def judge(results: Results) -> list[Outcome]:
    """Return the outcome of each goal whose peer was measured."""
    return [_outcome(goal, results) for goal in GOALS if goal.peer.module in results]


def _outcome(goal: Goal, results: Results) -> Outcome:
    pairs = zip(results[goal.ours.module], results[goal.peer.module], strict=True)
    return Outcome(
        goal, tuple(_ratio(ours[goal.figure], peer[goal.figure]) for ours, peer in pairs)
    )


def _ratio(ours: float, peer: float) -> float:
    # Noise can take an added time below nothing: no multiple of that says anything.
    return ours / peer if peer > 0 else float("nan")
