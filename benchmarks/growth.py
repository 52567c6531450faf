"""What a large outbox costs: the steps of a delivery, a purge, and the memory of a worker.

``python -m benchmarks.growth`` times each step by the product's own outbox, round after round on an
empty table and on one with as many waiting and as many finished rows as ``--rows`` says. A step
may take at most twice as long on the full one. insert, begin, complete: one delivery each;
claim: a batch of 100. The statistics of PostgreSQL are up to date.

purge: all finished rows are deleted, a batch in each transaction, so that how long the longest of
these keeps others waiting does not depend on how many there are.

memory: one worker carries ``--deliveries`` tiny ones; the median of what is resident in its process
during the first quarter of them, beside that during the last.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from .command import machine, parser_of, percentile, spread, table, verdict
from .server import deployed, serving
from .steps import (
    STEPS,
    add_finished,
    add_waiting,
    fresh_outbox,
    outbox_at,
    refresh_statistics,
    time_purge,
    time_steps,
)
from .systems import SQLITE_WORKERS, Backend, unavailable
from .usage import worker_resident_bytes

#: How many times as long a step may take on a full table.
_BOUND = 2.0

_BACKENDS = {"sqlite": Backend.SQLITE, "postgresql": Backend.POSTGRESQL}

#: Batches of each step in one round.
_BATCHES = 10

#: Seconds between two samples of memory, and those after which an idle worker is given up.
_PAUSE, _PATIENCE = 0.05, 60.0


def main() -> int:
    options = _options()
    print(f"Machine: {machine()}", flush=True)
    for kind in options.kinds:
        if (reason := unavailable(_BACKENDS[kind])) is not None:
            print(f"Left out {kind}: {reason}.", file=sys.stderr)
        else:
            _report(kind, options.rows, options.repetitions)
    if options.deliveries:
        _report_memory(options.deliveries)
    return 0


def _report(kind: str, rows: int, repetitions: int) -> None:
    with fresh_outbox(_BACKENDS[kind]) as empty, fresh_outbox(_BACKENDS[kind]) as full:
        _announce(f"{kind}: {2 * rows:,} rows are loaded")
        add_finished(full, rows)
        add_waiting(full, rows)
        refresh_statistics(full)
        _announce(f"{kind}: {repetitions} rounds of steps")
        rounds = [
            [time_steps(outbox, _BATCHES) for outbox in (empty, full)] for _ in range(repetitions)
        ]
        print(f"\n{kind}, {rows:,} waiting and {rows:,} finished rows; microseconds")
        head = ["", "empty", "full", "full / empty", ""]
        print(table(head, list(_rows(rounds))), flush=True)
        _announce(f"{kind}: a purge")
        _report_purge(time_purge(full))


def _report_purge(times: list[float]) -> None:
    p50, p99, longest = (percentile(times, percent) / 1000 for percent in (50, 99, 100))
    print(
        f"purge: {len(times):,} transactions in {sum(times) / 1e6:.1f} s; "
        f"of one p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {longest:.1f} ms",
        flush=True,
    )


def _rows(rounds: list[list[dict[str, float]]]) -> Iterator[list[str]]:
    for step in STEPS:
        empty, full = ([each[step] for each in times] for times in zip(*rounds, strict=True))
        ratios = [one / other for one, other in zip(full, empty, strict=True)]
        times = (f"{median(empty):,.0f}", f"{median(full):,.0f}")
        yield [step, *times, spread(ratios), verdict(is_met=median(ratios) <= _BOUND)]


def _report_memory(deliveries: int) -> None:
    _announce(f"{deliveries:,} deliveries by one worker")
    samples = _resident(deliveries)
    first = median(rss for done, rss in samples if done <= deliveries / 4)
    last = median(rss for done, rss in samples if done >= deliveries * 3 / 4)
    print(
        f"\na worker's memory over {deliveries:,} deliveries, {len(samples)} samples: "
        f"first quarter {first / 1e6:.1f} MB, last quarter {last / 1e6:.1f} MB, "
        f"ratio {last / first:.3f}"
    )


def _resident(deliveries: int) -> list[tuple[int, int]]:
    """Have one worker carry ``deliveries``; return how many were done and its bytes, by sample."""
    system = replace(SQLITE_WORKERS, workers=SQLITE_WORKERS.workers[:1])
    with deployed(system) as deployment:
        with outbox_at(deployment.database_url, Path(deployment.folder)) as outbox:
            add_waiting(outbox, deliveries)
        with serving(system, deployment, web_processes=1) as server:
            samples = [(0, 0)]
            progress_at = time.monotonic()
            while (done := server.starts.count) < deliveries:
                if done > samples[-1][0]:
                    progress_at = time.monotonic()
                elif time.monotonic() - progress_at > _PATIENCE:
                    raise TimeoutError(f"The worker stopped after {done} of {deliveries}.")
                time.sleep(_PAUSE)
                samples.append((done, worker_resident_bytes(server.pids[0])))
    return [(done, size) for done, size in samples if done and size]


def _announce(what: str) -> None:
    print(f"{what} …", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = parser_of("benchmarks.growth", __doc__)
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000, metavar="N", help="default: %(default)s")
    add("--deliveries", type=int, default=200_000, metavar="N", help="default: %(default)s")
    add("--on", dest="kinds", action="append", choices=_BACKENDS, help="default: all")
    options = parser.parse_args()
    options.kinds = options.kinds or _BACKENDS
    if options.quick:
        options.rows, options.repetitions, options.deliveries = 10_000, 1, 2_000
    return options


if __name__ == "__main__":
    sys.exit(main())
