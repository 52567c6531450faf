"""How a backlog slows visitors: a no-op's response while many tasks are delivered, and without.

``python -m benchmarks.backlog`` asks gunicorn's one web process of 8 threads for /noop on 2
connections, each asking on as soon as it was answered: first idle, then while tasks that sleep
5 ms are delivered by the same process or by workers. tasks/s: the rate at which they end meanwhile.

All settings of async_hooks are the defaults, but one: more than 1,000 launches may wait in memory,
and none is run in the request that made it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median

from .client import Sample, closed_loop
from .command import (
    Figures,
    in_rounds,
    introduce,
    parser_of,
    percentile,
    runnable,
    spread,
    table,
    verdict,
)
from .server import Server, deployed, serving
from .systems import EXECUTOR, HUEY, MEMORY, SQLITE, SQLITE_WORKERS, System

#: S1: how many times as long a visitor may wait while web processes deliver.
_BOUND = 1.3

_TASK_SECONDS = 0.005
_CONNECTIONS = 2

#: Seconds after which a backlog is given up.
_PATIENCE = 120.0

_COLUMNS = ("idle_p50", "idle_p99", "busy_p50", "busy_p99", "tasks_per_second")


def main() -> int:
    options = _options()
    systems = runnable((MEMORY, SQLITE, SQLITE_WORKERS, EXECUTOR, HUEY))
    introduce(systems)
    results = in_rounds(
        systems,
        options.repetitions,
        lambda system: _measure(system, options.tasks, options.requests),
    )
    print("\nMedians of the repetitions, in microseconds; busy / idle by repetition")
    head = ["", "idle p50", "p99", "busy p50", "p99", "tasks/s", "p50 ratio", "p99 ratio", "S1"]
    print(table(head, [_row(system, results[system.name]) for system in systems]))
    return 0


def _measure(system: System, tasks: int, requests: int) -> Figures:
    with (
        deployed(system, task_seconds=_TASK_SECONDS) as deployment,
        serving(system, deployment, web_processes=1) as server,
    ):
        server.warm_up()
        idle = closed_loop(server.port, ["/noop"] * requests, connections=_CONNECTIONS)
        server.launch(tasks)
        since, left = time.monotonic_ns(), server.launched - server.ends.count
        busy = closed_loop(server.port, _noops(server), connections=_CONNECTIONS)
        last = max(event.at for event in server.ends.read())
        return {
            **_figures("idle", idle),
            **_figures("busy", busy),
            "tasks_per_second": left / (last - since) * 1e9,
        }


def _noops(server: Server) -> Iterator[str]:
    """Ask for one after the other as long as any task is left."""
    deadline = time.monotonic() + _PATIENCE
    while server.ends.count < server.launched:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{server.system.label} does not come to an end.")
        yield "/noop"


def _figures(name: str, samples: Sequence[Sample]) -> Figures:
    times = [sample.latency / 1000 for sample in samples]
    return {f"{name}_p{percent}": percentile(times, percent) for percent in (50, 99)}


def _row(system: System, repetitions: Sequence[Figures]) -> list[str]:
    medians = [median(each[column] for each in repetitions) for column in _COLUMNS]
    p50s, p99s = (
        [each[f"busy_p{percent}"] / each[f"idle_p{percent}"] for each in repetitions]
        for percent in (50, 99)
    )
    is_judged = system in (MEMORY, SQLITE)
    return [
        system.label,
        *(f"{value:,.0f}" for value in medians),
        *(spread(p50s), spread(p99s)),
        verdict(is_met=median(p50s) <= _BOUND) if is_judged else "",
    ]


def _options() -> argparse.Namespace:
    parser = parser_of("benchmarks.backlog", __doc__)
    add = parser.add_argument
    add("--tasks", type=int, default=1500, metavar="N", help="default: %(default)s")
    add("--requests", type=int, default=2000, metavar="N", help="while idle (default: %(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.requests, options.repetitions = 300, 300, 1
    return options


if __name__ == "__main__":
    sys.exit(main())
