"""What a trigger costs: async_hooks beside what people use instead, and beside a no-op.

``python -m benchmarks.trigger`` starts real gunicorn servers on free ports of the loopback, one
system after the other, round after round, so that the machine's moods fall on all of them. A goal
is judged by the ratio of two systems in the same round. Exits with 1 if a launch of async_hooks
did not run exactly once.

hand-over: what the view waits, from just before the signal (submit, post) to just after, in a
closed loop; the app's own commit included, where a launch joins it. requests/s: of that loop, while
the tasks run. added: a response or a view with a launch less one without, paced, on an idle server.
pickup: from the start of the hand-over to the start of the receiver, paced. tasks/s: a burst,
from its first hand-over to the start of its last receiver; two processes do the work. CPU seconds:
user and system time of web and worker processes, from the burst until they rest. memory: their PSS
with one web process that rests. Neither includes Redis or PostgreSQL.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import report
from .goals import Results, judge
from .options import in_rounds, introduce, parser_of, runnable
from .ours import OURS
from .peers import ALWAYS, PEERS
from .series import Load, measure


def main() -> int:
    options = _options()
    load = _load(options)
    asked = PEERS if "all" in options.peers else dict.fromkeys(options.peers)
    systems = runnable((*OURS, *ALWAYS, *(PEERS[peer] for peer in asked)))
    introduce(systems)
    print(
        f"Load: {options.repetitions} repetitions of {load.requests} requests a series, "
        f"{load.pairs} paced pairs, a burst of {load.burst} launches ({load.per_request} each)",
        flush=True,
    )
    results = in_rounds(systems, options.repetitions, lambda system: measure(system, load))
    outcomes = judge(results)
    print(report.text(systems, results, outcomes))
    if options.json is not None:
        report.write_json(options.json, load, systems, results, outcomes)
    return 0 if _ran_once(results) else 1


def _ran_once(results: Results) -> bool:
    return all(
        figures["once"] == figures["launched"]
        for system in OURS
        for figures in results.get(system.name, ())
    )


def _options() -> argparse.Namespace:
    parser = parser_of("benchmarks.trigger", __doc__)
    add = parser.add_argument
    add("--requests", type=int, default=600, metavar="N", help="of a series (default: %(default)s)")
    add("--burst", type=int, default=2000, metavar="N", help="launches (default: %(default)s)")
    add("--per-request", type=int, default=10, metavar="N", help="of them (default: %(default)s)")
    add("--with", dest="peers", action="append", default=[], choices=[*PEERS, "all"])
    add("--json", type=Path, metavar="FILE", help="write the raw figures there")
    return parser.parse_args()


def _load(options: argparse.Namespace) -> Load:
    if options.quick:
        options.repetitions = 1
        return Load(requests=100, pairs=20, burst=200, per_request=options.per_request)
    return Load(
        requests=options.requests,
        pairs=max(1, options.requests // 6),
        burst=options.burst,
        per_request=options.per_request,
    )


if __name__ == "__main__":
    sys.exit(main())
