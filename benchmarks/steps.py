"""The steps of a delivery's life in the outbox, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, TypeVar

from async_hooks.envelope import new_id
from async_hooks.outbox.ledger import Ledger
from async_hooks.verdict import Outcome, Verdict

from .ledgers import TASK, addition

T = TypeVar("T")

#: Deliveries that are claimed at once.
BATCH = 100

#: The names of the steps, in their order.
STEPS = ("insert", "claim", "begin", "complete")

_DONE = Verdict(Outcome.COMPLETED, is_recorded=True)


class Stopwatch:
    """Keeps what each of several steps took, in microseconds."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {step: [] for step in STEPS}

    def run(self, step: str, function: Callable[..., T], *arguments: Any) -> T:
        started = time.perf_counter_ns()
        result = function(*arguments)
        self.times[step].append((time.perf_counter_ns() - started) / 1000)
        return result

    def medians(self) -> dict[str, float]:
        return {step: median(times) for step, times in self.times.items()}


def time_steps(ledger: Ledger, batches: int) -> dict[str, float]:
    """Add, claim, begin and complete so many batches; return the median of each step.

    As many rows are waiting afterwards as before.
    """
    watch = Stopwatch()
    for _ in range(batches):
        for _ in range(BATCH):
            watch.run("insert", ledger.add, [addition()])
        claimed, _ = watch.run("claim", ledger.claim, new_id(), [(TASK, "")], BATCH)
        if len(claimed) != BATCH:
            raise RuntimeError(f"{len(claimed)} deliveries were claimed instead of {BATCH}.")
        for envelope in claimed:
            watch.run("begin", ledger.begin, envelope)
            watch.run("complete", ledger.complete, envelope, None)
            ledger.end(envelope, _DONE)
    return watch.medians()


def time_purge(ledger: Ledger) -> list[float]:
    """Purge all that has finished; return what each transaction took, in microseconds."""
    times = []
    found = 1
    while found:
        started = time.perf_counter_ns()
        found = ledger.purge(ledger.now())
        times.append((time.perf_counter_ns() - started) / 1000)
    return times
