"""What is lost by SIGKILL: async_hooks with an outbox beside what people would use instead.

``python -m benchmarks.loss`` has tasks of 5 ms accepted, kills the whole process tree that runs
them, web and workers at once, when half of what was left has run, starts it again in the same
place and waits until no task runs any more. It exits with 1 if async_hooks lost anything.

never: accepted, and not finished. twice: started more than once. running: at the kill, by the
receivers' records: started, and ended less than 5 ms before the kill if at all, so that the
completion may not have been recorded. first, last: seconds from the restart until the first and the
last task ran; for a system whose web processes do the work, from the first request after the
restart. The time that the work itself needs is subtracted from last: the tasks that were unfinished
at the kill, at the pace at which the system ran them between the last acceptance and the kill. For
systems with workers, both include the start of Python and the app.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .command import in_rounds, introduce, parser_of, runnable, table, verdict
from .deployment import Event
from .server import Server, deployed, serving
from .systems import CELERY, EXECUTOR, HUEY, SQLITE, SQLITE_WORKERS, System

#: E3: seconds that async_hooks may take after a restart, beyond the work.
_BOUND = 2.0

#: Seconds that each task takes.
_TASK_SECONDS = 0.005

_OURS = (SQLITE, SQLITE_WORKERS)


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of the ``accepted`` tasks of one kill.

    ``running`` are those that ran at the kill: they had started, and had not ended, or just then,
    so that nobody can tell whether the completion was recorded. Seconds count from the restart; for
    a system whose web processes do the work, from their first request after it. They are None if
    no task ran any more.
    """

    accepted: int
    never: int
    twice: int
    running: int
    first_seconds: float | None
    last_seconds: float | None

    @property
    def is_over_soon(self) -> bool:
        return self.last_seconds is not None and self.last_seconds <= _BOUND


#: The goals: each with its promise and whether one kill meets it.
_GOALS: tuple[tuple[str, str, Callable[[Loss], bool]], ...] = (
    ("E1", "never = 0", lambda loss: loss.never == 0),
    ("E2", "twice <= running", lambda loss: loss.twice <= loss.running),
    ("E3", f"last <= {_BOUND:g} s", lambda loss: loss.is_over_soon),
)

#: The kills of each system, by its name.
_Losses = Mapping[str, Sequence[Loss]]


def main() -> int:
    options = _options()
    systems = runnable((*_OURS, HUEY, CELERY, EXECUTOR))
    introduce(systems)
    losses = in_rounds(
        systems,
        options.repetitions,
        lambda system: _measure(system, options.tasks, patience=options.patience),
    )
    print("\nEach kill")
    print(_kills(systems, losses))
    print("\nGoals: kills that met it")
    print(_goals(losses))
    return 1 if any(loss.never for system in _OURS for loss in losses[system.name]) else 0


@dataclass(frozen=True, slots=True)
class _Kill:
    """When it was, which events are older, and how long ``half`` of the tasks had taken."""

    at: int
    starts: list[Event]
    ends: list[Event]
    half: int
    half_seconds: float


def _measure(system: System, tasks: int, *, patience: float) -> Loss:
    """Kill ``system`` once, and wait until no task has ended for ``patience`` seconds.

    The half of the tasks that is left needs as long again as the first one took: what it takes
    longer is what the kill costs.
    """
    with deployed(system, task_seconds=_TASK_SECONDS) as deployment:
        with serving(system, deployment, web_processes=1) as server:
            server.warm_up()
            numbers = server.launch(tasks)
            kill = _kill_at_half(server, patience)
        with serving(system, deployment, web_processes=1) as server:
            server.ends.wait(sys.maxsize, patience=patience)
            return _loss(server, numbers, kill)


def _kill_at_half(server: Server, patience: float) -> _Kill:
    ends = server.ends
    accepted_at, ended = time.monotonic_ns(), ends.count
    half = (server.launched - ended) // 2
    ends.wait(ended + half, patience=patience)
    killed_at = time.monotonic_ns()
    server.kill()
    seconds = (killed_at - accepted_at) / 1e9
    return _Kill(killed_at, server.starts.read(), ends.read(), ends.count - ended, seconds)


def _loss(server: Server, numbers: range, kill: _Kill) -> Loss:
    since = server.started_at if server.system.workers else server.served_at
    starts, ends = server.starts.read(), server.ends.read()
    times = Counter(event.number for event in starts)
    finished = {event.number for event in ends}
    finished_before = {event.number for event in kill.ends}
    left = len(set(numbers) - finished_before)
    started_again = [event.at for event in starts[len(kill.starts) :]]
    ended_again = [
        event.at for event in ends[len(kill.ends) :] if event.number not in finished_before
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
    just_before = kill.at - _TASK_SECONDS * 1e9
    ended = {event.number for event in kill.ends if event.at < just_before}
    return {event.number for event in kill.starts} - ended


def _kills(systems: Sequence[System], losses: _Losses) -> str:
    head = ["", "accepted", "never", "twice", "running", "first s", "last s"]
    rows = [_row(system, loss) for system in systems for loss in losses[system.name]]
    return table(head, rows)


def _row(system: System, loss: Loss) -> list[str]:
    counts = (loss.accepted, loss.never, loss.twice, loss.running)
    seconds = (loss.first_seconds, loss.last_seconds)
    return [
        system.label,
        *(f"{count:,}" for count in counts),
        *("-" if value is None else f"{value:.2f}" for value in seconds),
    ]


def _goals(losses: _Losses) -> str:
    rows = []
    for name, promise, is_met in _GOALS:
        for system in _OURS:
            kills = losses[system.name]
            met, total = sum(map(is_met, kills)), len(kills)
            outcome = verdict(is_met=met == total)
            rows.append([name, system.label, promise, f"{met} of {total}", outcome])
    return table(["goal", "", "promise", "", ""], rows)


def _options() -> argparse.Namespace:
    parser = parser_of("benchmarks.loss", __doc__)
    add = parser.add_argument
    add("--tasks", type=int, default=2000, metavar="N", help="accepted (default: %(default)s)")
    add("--patience", type=float, default=20.0, metavar="S", help="default: %(default)s seconds")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.repetitions = 300, 1
    return options


if __name__ == "__main__":
    sys.exit(main())
