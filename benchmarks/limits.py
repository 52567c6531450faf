"""What limits cost: the claim beside what they hold, and a delivery that has one.

``python -m benchmarks.limits`` times both by the product's own outbox, round after round, beside
the same without limits. claim: a batch of 100, with 1,000 keys of which some wait, and behind as
many held rows as ``--rows`` says. It looks at none of them, so it takes as long as without.

delivery: launched, promoted, claimed, begun and completed, by itself or from a backlog of 50 of
which two run at once. A limited one may take 1.5 times as long on SQLite, twice as long elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from async_hooks.outbox.store import Store

from .command import machine, parser_of, spread, table, verdict
from .steps import (
    add_held,
    fresh_outbox,
    refresh_statistics,
    time_claims,
    time_deliveries,
)
from .systems import Backend, unavailable

_BACKENDS = {"sqlite": Backend.SQLITE, "postgresql": Backend.POSTGRESQL}

#: How many times as long it may take: the claim, but for noise, and a delivery.
_CLAIM, _DELIVERY = 1.1, {"sqlite": 1.5, "postgresql": 2.0}

_KEYS, _BACKLOG, _CLAIMS = 1_000, 50, 30


def main() -> int:
    options = _options()
    print(f"Machine: {machine()}", flush=True)
    for kind in options.kinds:
        if (reason := unavailable(_BACKENDS[kind])) is not None:
            print(f"Left out {kind}: {reason}.", file=sys.stderr)
        else:
            _report(kind, options)
    return 0


def _report(kind: str, options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        plain, keyed, full = (stack.enter_context(fresh_outbox(_BACKENDS[kind])) for _ in range(3))
        add_held(keyed, 2 * _KEYS, keys=_KEYS)
        add_held(full, options.rows, keys=1)
        for outbox in (keyed, full):
            refresh_statistics(outbox)

        def claims(outbox: Store) -> float:
            return time_claims(outbox, _CLAIMS)

        def deliveries(limit: int | None, backlog: int) -> float:
            return time_deliveries(plain, options.deliveries, limit=limit, backlog=backlog)

        steps: dict[str, tuple[float, Callable[[], float], Callable[[], float]]] = {
            "claim, 1,000 keys": (_CLAIM, lambda: claims(plain), lambda: claims(keyed)),
            f"claim, {options.rows:,} held": (
                *(_CLAIM, lambda: claims(plain), lambda: claims(full)),
            ),
            "delivery by itself": (
                *(_DELIVERY[kind], lambda: deliveries(None, 1), lambda: deliveries(2, 1)),
            ),
            "delivery of a backlog": (
                _DELIVERY[kind],
                lambda: deliveries(None, _BACKLOG),
                lambda: deliveries(2, _BACKLOG),
            ),
        }
        rows = []
        for name, (bound, without, limited) in steps.items():
            pairs = [(without(), limited()) for _ in range(options.repetitions)]
            ratios = [one / other for other, one in pairs]
            times = [f"{median(each):,.0f}" for each in zip(*pairs, strict=True)]
            rows.append([name, *times, spread(ratios), verdict(is_met=median(ratios) <= bound)])
    print(f"\n{kind}; microseconds")
    print(table(["", "without", "limited", "limited / without", ""], rows), flush=True)


def _options() -> argparse.Namespace:
    parser = parser_of("benchmarks.limits", __doc__)
    add = parser.add_argument
    add("--rows", type=int, default=100_000, metavar="N", help="default: %(default)s")
    add("--deliveries", type=int, default=1_000, metavar="N", help="default: %(default)s")
    add("--on", dest="kinds", action="append", choices=_BACKENDS, help="default: all")
    options = parser.parse_args()
    options.kinds = options.kinds or _BACKENDS
    if options.quick:
        options.rows, options.repetitions, options.deliveries = 2_000, 1, 100
    return options


if __name__ == "__main__":
    sys.exit(main())
