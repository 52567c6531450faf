"""What a trigger costs: async_hooks beside what people use instead, and beside a no-op.

``python -m benchmarks.trigger`` starts real gunicorn servers on free ports of the loopback, one
system after the other, round after round, so that a change in the machine's speed affects all of
them. A goal is judged by the ratio of two systems in the same round. The command exits with 1 if a
launch of async_hooks did not run exactly once.

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
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from . import report, usage
from .client import Sample, closed_loop, paced
from .command import Figures, in_rounds, introduce, parser_of, percentile, runnable
from .server import THREADS, Server, deployed, serving
from .systems import ALWAYS, OURS, PEERS, System

#: Seconds between two paced requests: what the first one started is over before the second.
_PAUSE = 0.04


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked for in one repetition. Times are microseconds, memory is megabytes."""

    #: Triggers of each hand-over series.
    requests: int
    #: Pairs of a no-op and a trigger in the paced series.
    pairs: int
    #: Launches of the burst, and how many of them one request makes.
    burst: int
    per_request: int


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
    results = in_rounds(systems, options.repetitions, lambda system: _measure(system, load))
    outcomes = report.judge(results)
    print(report.text(systems, results, outcomes))
    if options.json is not None:
        report.write_json(options.json, asdict(load), systems, results, outcomes)
    ours = (figures for system in OURS for figures in results.get(system.name, ()))
    return 0 if all(figures["once"] == figures["launched"] for figures in ours) else 1


def _measure(system: System, load: Load) -> Figures:
    """Measure one repetition of ``system``: latency on one web process, throughput on two."""
    with deployed(system) as deployment, serving(system, deployment, web_processes=1) as server:
        _warm_up(server)
        usage.await_idle(server.pids)
        figures = {"memory": usage.memory_megabytes(server.pids)}
        figures |= _hand_over(server, "hand_over_1", load.requests)
        figures |= _hand_over(server, "hand_over_8", load.requests, connections=THREADS)
        figures |= _hand_over(server, "hand_over_of_3", max(1, load.requests // 3), launches=3)
        figures |= _paced(server, load.pairs)
        counts = Counter(_counts(server))
    if system.defers:
        processes = 1 if system.workers else 2
        with (
            deployed(system) as deployment,
            serving(system, deployment, web_processes=processes) as server,
        ):
            _warm_up(server)
            figures |= _burst(server, load)
            counts.update(_counts(server))
    return figures | counts


def _warm_up(server: Server) -> None:
    """Have every thread started, every connection made, and everything imported."""
    for connections in (1, THREADS, 4 * THREADS):
        closed_loop(server.port, server.triggers(2 * connections), connections=connections)
    server.settle()


def _hand_over(
    server: Server, name: str, requests: int, *, connections: int = 1, launches: int = 1
) -> Figures:
    """Ask as fast as answers come, while what was launched before runs."""
    _warm_up(server)
    paths = server.triggers(requests, launches)
    started = time.monotonic()
    samples = closed_loop(server.port, paths, connections=connections)
    seconds = time.monotonic() - started
    server.settle()
    times = [sample.hand_over / 1000 for sample in samples]
    figures = {f"{name}_p{percent}": percentile(times, percent) for percent in (50, 95, 99)}
    return {**figures, f"{name}_requests_per_second": requests / seconds}


def _paced(server: Server, pairs: int) -> Figures:
    """Take a no-op and a trigger in turn, on an otherwise idle server."""
    _warm_up(server)
    numbers = server.numbers(pairs)
    paths = [path for number in numbers for path in ("/noop", f"/trigger/{number}/1")]
    samples = list(paced(server.port, paths, pause=_PAUSE))
    server.settle()
    noops, triggers = samples[0::2], samples[1::2]
    noop, trigger = (median(each.latency for each in half) / 1000 for half in (noops, triggers))
    in_view = [median(each.hand_over for each in half) / 1000 for half in (noops, triggers)]
    return {
        "noop_p50": noop,
        "response_p50": trigger,
        "added_p50": trigger - noop,
        # Without what the view of a no-op does as well: a transaction of the app's.
        "added_in_view_p50": in_view[1] - in_view[0],
        **_pickup(server, numbers, triggers),
    }


def _pickup(server: Server, numbers: range, triggers: Sequence[Sample]) -> Figures:
    if not server.system.defers:
        return {}
    started = {event.number: event.at for event in server.starts.read()}
    times = [
        (started[number] - sample.started_at) / 1000
        for number, sample in zip(numbers, triggers, strict=True)
        if number in started
    ]
    return {"pickup_p50": percentile(times, 50), "pickup_p99": percentile(times, 99)}


def _burst(server: Server, load: Load) -> Figures:
    """Launch all at once; the time ends when the last receiver starts."""
    usage.await_idle(server.pids)
    used, first = usage.cpu_seconds(server.pids), server.launched
    paths = server.triggers(load.burst // load.per_request, load.per_request)
    samples = closed_loop(server.port, paths, connections=THREADS, keep_alive=False)
    server.settle()
    ran = [event.at for event in server.starts.read() if event.number >= first]
    seconds = (max(ran) - min(sample.started_at for sample in samples)) / 1e9
    # Work goes on after a receiver's start: its completion is written, a reply is sent.
    usage.await_idle(server.pids)
    return {
        "tasks_per_second": len(ran) / seconds,
        "cpu_seconds_per_1000": (usage.cpu_seconds(server.pids) - used) * 1000 / len(ran),
    }


def _counts(server: Server) -> dict[str, int]:
    """Compare the starts of receivers with what was launched."""
    if not server.system.defers:
        return dict.fromkeys(report.COUNTS, 0)
    usage.await_idle(server.pids)  # A second run of one would come late.
    times = Counter(event.number for event in server.starts.read())
    once = sum(times[number] == 1 for number in range(server.launched))
    never = sum(times[number] == 0 for number in range(server.launched))
    twice = server.launched - once - never
    return {"launched": server.launched, "once": once, "twice": twice, "never": never}


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
