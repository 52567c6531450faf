"""One kill: what was accepted before it, and what became of that afterwards.

Half of what is still unfinished, once everything was accepted, is let run; then all processes are
killed at once, and started again in the same place. The other half needs as long again as the
first one took: what it takes longer is what the kill costs.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass

from .launching import launch, warm_up
from .notes import Note
from .server import Site, fresh_home, serving
from .system import System

#: Seconds that each task takes.
TASK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of the ``accepted`` tasks.

    ``running`` are those that were at the kill: they had started, and had not ended, or had just
    now and nobody can tell whether that was written down. Seconds count from the restart; for a
    system whose web processes do the work, from their first request after it. They are None if
    nothing ran any more.
    """

    accepted: int
    never: int
    twice: int
    running: int
    first_seconds: float | None
    last_seconds: float | None


@dataclass(frozen=True, slots=True)
class _Kill:
    """When it was, and which notes are older; ``half_seconds`` is how long ``half`` tasks took."""

    at: int
    starts: list[Note]
    ends: list[Note]
    half: int
    half_seconds: float


def measure(system: System, tasks: int, *, patience: float) -> Loss:
    """Kill ``system`` once, and wait until no task has ended for ``patience`` seconds."""
    with fresh_home(system, task_seconds=TASK_SECONDS) as home:
        with serving(system, home, workers=1) as site:
            warm_up(site)
            numbers = launch(site, tasks)
            kill = _kill_at_half(site, patience)
        with serving(system, home, workers=1) as site:
            site.ends.wait(sys.maxsize, patience=patience)
            return _loss(site, numbers, kill)


def _kill_at_half(site: Site, patience: float) -> _Kill:
    ends = site.ends
    accepted_at, ended = time.monotonic_ns(), ends.count
    half = (site.launched - ended) // 2
    ends.wait(ended + half, patience=patience)
    killed_at = time.monotonic_ns()
    site.kill()
    seconds = (killed_at - accepted_at) / 1e9
    return _Kill(killed_at, site.notes.read(), ends.read(), ends.count - ended, seconds)


def _loss(site: Site, numbers: range, kill: _Kill) -> Loss:
    since = site.started_at if site.system.workers else site.served_at
    starts, ends = site.notes.read(), site.ends.read()
    times = Counter(note.number for note in starts)
    finished = {note.number for note in ends}
    finished_before = {note.number for note in kill.ends}
    left = len(set(numbers) - finished_before)
    started_again = [note.started_at for note in starts[len(kill.starts) :]]
    ended_again = [
        note.started_at for note in ends[len(kill.ends) :] if note.number not in finished_before
    ]
    work = kill.half_seconds * left / max(1, kill.half)
    return Loss(
        accepted=len(numbers),
        never=len(set(numbers) - finished),
        twice=sum(count > 1 for count in times.values()),
        running=len(_running(kill)),
        first_seconds=(min(started_again) - since) / 1e9 if started_again else None,
        last_seconds=(max(ended_again) - since) / 1e9 - work if ended_again else None,
    )


def _running(kill: _Kill) -> set[int]:
    just_now = kill.at - TASK_SECONDS * 1e9
    ended = {note.number for note in kill.ends if note.started_at < just_now}
    return {note.number for note in kill.starts} - ended
