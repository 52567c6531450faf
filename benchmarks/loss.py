"""What is lost by SIGKILL: async_hooks with an outbox beside what people would use instead.

``python -m benchmarks.loss`` has tasks of 5 ms accepted, kills the whole process tree that runs
them, web and workers at once, when half of what was left has run, starts it again in the same
place and waits until nothing comes any more. Exits with 1 if async_hooks lost anything.

never: accepted, and not finished. twice: started more than once. running: at the kill, by the
notebook: started, and ended less than 5 ms before the kill if at all, so that the end may not have
been written down. first, last: seconds from the restart until the first and the last task
ran; for a system whose web processes do the work, from the first request after the restart. Of
last, what the work itself needs is taken off: the tasks that were unfinished at the kill, at the
pace at which the system ran them between the last acceptance and the kill. For systems with
workers, both include the start of Python and the app.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from .killing import Loss, measure
from .options import in_rounds, introduce, parser_of, runnable
from .ours import SQLITE, SQLITE_WORKERS
from .peers import CELERY, EXECUTOR, HUEY
from .system import System
from .table import table

#: E3: seconds that async_hooks may take after a restart, beyond the work.
_BOUND = 2.0

_OURS = (SQLITE, SQLITE_WORKERS)


def _is_soon(loss: Loss) -> bool:
    return loss.last_seconds is not None and loss.last_seconds <= _BOUND


#: The goals: each with its promise and whether one kill meets it.
_GOALS: tuple[tuple[str, str, Callable[[Loss], bool]], ...] = (
    ("E1", "never = 0", lambda loss: loss.never == 0),
    ("E2", "twice <= running", lambda loss: loss.twice <= loss.running),
    ("E3", f"last <= {_BOUND:g} s", _is_soon),
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
        lambda system: measure(system, options.tasks, patience=options.patience),
    )
    print("\nEach kill")
    print(_table(systems, losses))
    print("\nGoals: kills that met it")
    print(_goals(losses))
    return 1 if any(loss.never for system in _OURS for loss in losses[system.name]) else 0


def _table(systems: Sequence[System], losses: _Losses) -> str:
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
            verdict = "met" if met == total else "missed"
            rows.append([name, system.label, promise, f"{met} of {total}", verdict])
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
