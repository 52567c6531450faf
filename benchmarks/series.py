"""The series of one repetition on one system: what is asked for, and what is read off it.

All figures of time are microseconds, of memory megabytes; seconds say so in their names.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from .client import Sample, closed_loop, paced
from .server import THREADS, Site, running
from .system import System

Figures = dict[str, float]

#: Seconds between two paced requests: what the first one started is over before the second.
_PAUSE = 0.04


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked for in one repetition."""

    #: Triggers of each hand-over series.
    requests: int
    #: Pairs of a no-op and a trigger in the paced series.
    pairs: int
    #: Launches of the burst, and how many of them one request makes.
    burst: int
    per_request: int


def measure(system: System, load: Load) -> Figures:
    """Measure one repetition of ``system``: latency on one web process, throughput on two."""
    with running(system, workers=1) as site:
        _warm_up(site)
        site.rest()
        figures = {"memory": site.memory_megabytes()}
        figures |= _hand_over(site, "hand_over_1", load.requests)
        figures |= _hand_over(site, "hand_over_8", load.requests, connections=THREADS)
        figures |= _hand_over(site, "hand_over_of_3", max(1, load.requests // 3), launches=3)
        figures |= _paced(site, load.pairs)
        counts = Counter(_counts(site))
    if system.defers:
        with running(system, workers=system.web_workers) as site:
            _warm_up(site)
            figures |= _burst(site, load)
            counts.update(_counts(site))
    return figures | counts


def _hand_over(
    site: Site, name: str, requests: int, *, connections: int = 1, launches: int = 1
) -> Figures:
    """Ask as fast as answers come, while what was launched before runs."""
    _warm_up(site)
    paths = site.triggers(requests, launches)
    started = time.monotonic()
    samples = closed_loop(site.port, paths, connections=connections)
    seconds = time.monotonic() - started
    site.settle()
    times = [sample.hand_over / 1000 for sample in samples]
    figures = {f"{name}_p{percent}": percentile(times, percent) for percent in (50, 95, 99)}
    return {**figures, f"{name}_requests_per_second": requests / seconds}


def _paced(site: Site, pairs: int) -> Figures:
    """Take a no-op and a trigger in turn, on an otherwise idle server."""
    _warm_up(site)
    numbers = site.numbers(pairs)
    samples = list(paced(site.port, _pairs(numbers), pause=_PAUSE))
    site.settle()
    noops, triggers = samples[0::2], samples[1::2]
    noop = median(sample.latency for sample in noops) / 1000
    trigger = median(sample.latency for sample in triggers) / 1000
    in_view = [median(sample.hand_over for sample in half) / 1000 for half in (noops, triggers)]
    return {
        "noop_p50": noop,
        "response_p50": trigger,
        "added_p50": trigger - noop,
        # Without what the view of a no-op does as well: a transaction of the app's.
        "added_in_view_p50": in_view[1] - in_view[0],
        **_pickup(site, numbers, triggers),
    }


def _pickup(site: Site, numbers: range, triggers: Sequence[Sample]) -> Figures:
    if not site.system.defers:
        return {}
    started = {note.number: note.started_at for note in site.notes.read()}
    times = [
        (started[number] - sample.started_at) / 1000
        for number, sample in zip(numbers, triggers, strict=True)
        if number in started
    ]
    return {"pickup_p50": percentile(times, 50), "pickup_p99": percentile(times, 99)}


def _burst(site: Site, load: Load) -> Figures:
    """Launch all at once; the time ends when the last receiver starts."""
    site.rest()
    used, first = site.cpu_seconds(), site.launched
    paths = site.triggers(load.burst // load.per_request, load.per_request)
    samples = closed_loop(site.port, paths, connections=THREADS, kept=False)
    site.settle()
    ran = [note.started_at for note in site.notes.read() if note.number >= first]
    seconds = (max(ran) - min(sample.started_at for sample in samples)) / 1e9
    # Work goes on after a receiver's start: its completion is written, a reply is sent.
    site.rest()
    return {
        "tasks_per_second": len(ran) / seconds,
        "cpu_seconds_per_1000": (site.cpu_seconds() - used) * 1000 / len(ran),
    }


def _warm_up(site: Site) -> None:
    """Let every thread and connection be made, and everything be imported."""
    for connections in (1, THREADS, 4 * THREADS):
        closed_loop(site.port, site.triggers(2 * connections), connections=connections)
    site.settle()


def _counts(site: Site) -> dict[str, int]:
    """Hold the notebook against what was launched."""
    if not site.system.defers:
        return {"launched": 0, "once": 0, "twice": 0, "never": 0}
    site.rest()  # A second run of one would come late.
    times = Counter(note.number for note in site.notes.read())
    once = sum(times[number] == 1 for number in range(site.launched))
    never = sum(times[number] == 0 for number in range(site.launched))
    return {
        "launched": site.launched,
        "once": once,
        "twice": site.launched - once - never,
        "never": never,
    }


def _pairs(numbers: range) -> Iterator[str]:
    for number in numbers:
        yield "/noop"
        yield f"/trigger/{number}/1"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
