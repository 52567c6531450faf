"""What a large outbox costs: the steps of a delivery, a purge, and the memory of a worker.

``python -m benchmarks.growth`` times each step by the product's own ledger, round after round on an
empty table and on one with as many waiting and as many finished rows as ``--rows`` says. A step
may take at most twice as long on the full one. insert, begin, complete: one delivery each;
claim: a batch of 100. Of PostgreSQL, the statistics are up to date.

purge: all finished rows are deleted, a batch in each transaction: how long the longest of these
keeps others waiting does not depend on how many there are.

memory: one worker carries ``--deliveries`` tiny ones; the median of what is resident in its process
during the first quarter of them, beside that during the last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from statistics import median

from .ledgers import fresh_ledger, load_finished, load_waiting, refresh_statistics
from .machine import machine
from .options import parser_of
from .series import percentile
from .steps import STEPS, time_purge, time_steps
from .stores import Store, unavailable
from .table import spread, table
from .worker_memory import resident

#: How often as long a step may take on a full table.
BOUND = 2.0

_STORES = {"sqlite": Store.SQLITE, "postgresql": Store.POSTGRESQL}

#: Batches of each step in one round.
_BATCHES = 10


def main() -> int:
    options = _options()
    print(f"Machine: {machine()}", flush=True)
    for kind in options.kinds:
        if (reason := unavailable(_STORES[kind])) is not None:
            print(f"Left out {kind}: {reason}.", file=sys.stderr)
        else:
            _report(kind, options.rows, options.repetitions)
    if options.deliveries:
        _report_memory(options.deliveries)
    return 0


def _report(kind: str, rows: int, repetitions: int) -> None:
    with fresh_ledger(_STORES[kind]) as empty, fresh_ledger(_STORES[kind]) as full:
        _say(f"{kind}: {2 * rows:,} rows are loaded")
        load_finished(full, rows)
        load_waiting(full, rows)
        refresh_statistics(full)
        _say(f"{kind}: {repetitions} rounds of steps")
        rounds = [
            [time_steps(ledger, _BATCHES) for ledger in (empty, full)] for _ in range(repetitions)
        ]
        print(f"\n{kind}, {rows:,} waiting and {rows:,} finished rows; microseconds")
        head = ["", "empty", "full", "full / empty", ""]
        print(table(head, list(_lines(rounds))), flush=True)
        _say(f"{kind}: a purge")
        _report_purge(time_purge(full))


def _report_purge(times: list[float]) -> None:
    p50, p99, longest = (percentile(times, percent) / 1000 for percent in (50, 99, 100))
    print(
        f"purge: {len(times):,} transactions in {sum(times) / 1e6:.1f} s; "
        f"of one p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {longest:.1f} ms",
        flush=True,
    )


def _lines(rounds: list[list[dict[str, float]]]) -> Iterator[list[str]]:
    for step in STEPS:
        empty, full = ([each[step] for each in times] for times in zip(*rounds, strict=True))
        ratios = [one / other for one, other in zip(full, empty, strict=True)]
        verdict = "met" if median(ratios) <= BOUND else "missed"
        times = (f"{median(empty):,.0f}", f"{median(full):,.0f}")
        yield [step, *times, spread(ratios), verdict]


def _report_memory(deliveries: int) -> None:
    _say(f"{deliveries:,} deliveries by one worker")
    samples = resident(deliveries)
    first = median(rss for done, rss in samples if done <= deliveries / 4)
    last = median(rss for done, rss in samples if done >= deliveries * 3 / 4)
    print(
        f"\na worker's memory over {deliveries:,} deliveries, {len(samples)} samples: "
        f"first quarter {first / 1e6:.1f} MB, last quarter {last / 1e6:.1f} MB, "
        f"ratio {last / first:.3f}"
    )


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = parser_of("benchmarks.growth", __doc__)
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000, metavar="N", help="default: %(default)s")
    add("--deliveries", type=int, default=200_000, metavar="N", help="default: %(default)s")
    add("--on", dest="kinds", action="append", choices=_STORES, help="default: all")
    options = parser.parse_args()
    options.kinds = options.kinds or _STORES
    if options.quick:
        options.rows, options.repetitions, options.deliveries = 10_000, 1, 2_000
    return options


if __name__ == "__main__":
    sys.exit(main())
