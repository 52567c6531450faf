"""What must hold when it is quiet again, read off the ledger, the table and the launches."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import select

from async_hooks.envelope import FINISHED
from tests.chaos.driver import Chaos
from tests.chaos.effects import effects
from tests.chaos.launches import Fate, Launch, Strike

#: Seconds within which what was frozen has gone on.
MARGIN = 1.0

#: Seconds after its commit within which a run says that it is kept.
_AFTER = 5.0

RECEIVERS = {"single": ("only",), "split": ("one", "two", "three", "finish")}


@dataclass
class Report:
    """Counts and, for what must not be, sentences."""

    seed: int = 0
    launched: int = 0
    accepted: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    ghosts: list[str] = field(default_factory=list)
    #: Runs of a delivery beside its last one, and how many ran when their process was struck.
    duplicates: int = 0
    allowed: int = 0
    #: Those that no strike excuses.
    doubled: list[str] = field(default_factory=list)
    strikes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    #: Attempts that took longer than their timeout.
    overdue: int = 0
    #: Seconds from the last strike at anybody to the next begin of what was broken off.
    slowest_recovery: float = 0.0

    def check(self) -> None:
        troubles = self.lost + self.ghosts + self.doubled
        shown = "\n".join(troubles[:40])
        assert not troubles, f"seed {self.seed}: {len(troubles)} troubles, {self}\n{shown}"
        assert self.duplicates <= self.allowed, self

    def __str__(self) -> str:
        struck = ", ".join(f"{number} {kind}" for kind, number in sorted(self.strikes.items()))
        return (
            f"launched {self.launched}, accepted {self.accepted}, runs {self.runs}, "
            f"lost {len(self.lost)}, ghosts {len(self.ghosts)}, "
            f"duplicates {self.duplicates} (of {self.allowed} allowed), "
            f"unexcused {len(self.doubled)}, slowest recovery {self.slowest_recovery:.2f} s; "
            f"{self.overdue} overdue, {struck or 'no strikes'}"
        )


class Run:
    """One run of a receiver as the ledger knows it."""

    def __init__(self, begin: Mapping[str, Any]) -> None:
        self.id: str = begin["id"]
        self.number: int = begin["number"]
        self.receiver: str = begin["receiver"]
        self.attempt: int = begin["attempt"]
        self.pid: int = begin["pid"]
        self.at: float = begin["at"]
        self.ended: float | None = None
        self.kept: float | None = None
        self.failed = False

    def under_way_at(self, strike: Strike) -> bool:
        """Tell whether it had begun, and not been kept, when its process was struck."""
        if strike.pid != self.pid or self.failed:
            return False
        # What was frozen between its begin in the table and here, says so when it goes on.
        margin = MARGIN if strike.until > strike.at and self.kept is None else 0.0
        if self.at > strike.until + margin:
            return False
        return self.kept is None or self.kept > strike.at

    def __str__(self) -> str:
        return (
            f"attempt {self.attempt} in {self.pid} at {self.at:.3f}, "
            f"ended {self.ended}, kept {self.kept}"
        )


def examine(chaos: Chaos, *, deadly: Collection[int] = ()) -> Report:
    """Compare what was asked for with what happened; ``deadly`` numbers are to be discarded."""
    report = Report(seed=chaos.seed, launched=len(chaos.launches))
    rows: dict[int, list[Any]] = defaultdict(list)
    for row in chaos.rows():
        rows[json.loads(row.body)["number"]].append(row)
    runs: dict[int, list[Run]] = defaultdict(list)
    for run in runs_of(chaos):
        runs[run.number].append(run)
    for launch in chaos.launches.values():
        if launch.number not in deadly:
            _examine_launch(report, launch, rows[launch.number], runs[launch.number])
    for number in (rows.keys() | runs.keys()) - chaos.launches.keys():
        report.ghosts.append(f"ghost: nobody launched number {number}")
    _examine_runs(report, chaos, [run for several in runs.values() for run in several], deadly)
    reports = Counter((line["id"], line["claim"]) for line in chaos.lines("overdue"))
    report.overdue = len(reports)
    report.doubled += [f"overdue twice: {one}" for one, times in reports.items() if times > 1]
    if chaos.kind == "app":
        _examine_effects(report, chaos)
    for strike in chaos.strikes:
        report.strikes[strike.kind] += 1
    return report


def runs_of(chaos: Chaos) -> list[Run]:
    runs: dict[str, Run] = {}
    for line in chaos.lines():
        match line["what"]:
            case "begin":
                runs[line["run"]] = Run(line)
            case "end":
                runs[line["run"]].ended = line["at"]
            case "kept":
                runs[line["run"]].kept = line["at"]
            case "fail":
                runs[line["run"]].failed = True
            # The app's own database broke its run: its writes went with it.
            case "broke" if chaos.kind == "app":
                runs[line["run"]].failed = True
    return list(runs.values())


def _examine_launch(report: Report, launch: Launch, rows: list[Any], runs: list[Run]) -> None:
    what = f"{launch.action} {launch.number} ({launch.fate})"
    report.accepted += launch.fate is Fate.ACCEPTED
    if launch.fate is Fate.NEVER or (launch.fate is Fate.MAYBE and not rows):
        if rows or runs:
            report.ghosts.append(f"ghost: {what}: {len(rows)} rows, {len(runs)} runs")
        return
    ids = {row.id for row in rows}
    report.lost += [f"lost: {what}: no row {missing}" for missing in set(launch.ids) - ids]
    for row in rows:
        if row.state != "completed":
            shown = {key: getattr(row, key) for key in _SHOWN}
            report.lost.append(f"lost: {what}: {shown}")
    ended = {run.receiver for run in runs if run.ended is not None}
    missed = set(RECEIVERS[launch.action]) - ended
    report.lost += [f"lost: {what}: receiver {name} never ended" for name in missed]
    finishes = [row.id for row in rows if row.receiver == FINISHED]
    if len(finishes) > 1:
        report.doubled.append(f"doubled: {what} was finished {len(finishes)} times")
    began = [run.at for run in runs if run.receiver == "finish"]
    kept = [run.kept for run in runs if run.receiver != "finish" and run.kept is not None]
    if began and kept and min(began) < max(kept) - _AFTER:
        report.ghosts.append(f"ghost: {what} was finished before its last receiver")


_SHOWN = (
    *("id", "state", "receiver", "attempts", "crashes"),
    *("process_id", "lease", "run_at", "error"),
)


def _examine_runs(report: Report, chaos: Chaos, runs: list[Run], deadly: Collection[int]) -> None:
    report.runs = len(runs)
    for strike in chaos.strikes:
        report.allowed += sum(run.under_way_at(strike) for run in runs)
    by_delivery: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.attempt, run.at)):
        by_delivery[run.id, run.receiver].append(run)
    for (delivery, receiver), several in by_delivery.items():
        kept = [run for run in several if run.kept is not None]
        if len(kept) > 1:
            report.doubled.append(f"kept twice: {delivery} {receiver}: {_told(several)}")
        for run, then in pairwise(several):
            if run.failed or run.number in deadly:
                continue
            report.duplicates += 1
            strikes = [strike for strike in chaos.strikes if run.under_way_at(strike)]
            if not strikes:
                report.doubled.append(f"doubled: {delivery} {receiver}: {_told(several)}")
            else:
                waited = then.at - _peace_before(then.at, chaos.strikes)
                report.slowest_recovery = max(report.slowest_recovery, waited)


def _peace_before(moment: float, strikes: Iterable[Strike]) -> float:
    """Return since when nobody had been struck any more; a freeze that lasted counts at once."""
    ends = (
        strike.at if strike.until > moment else strike.until
        for strike in strikes
        if strike.at < moment
    )
    return max(ends, default=moment)  # Of a death that it met by itself, we hear a little later.


def _examine_effects(report: Report, chaos: Chaos) -> None:
    """See that what receivers wrote is there once for each delivery that is completed."""
    written: dict[str, int] = defaultdict(int)
    with chaos.engine.connect() as connection:
        for row in connection.execute(select(effects)):
            written[row.delivery] += 1
    for row in chaos.rows():
        ran_here = row.receiver or json.loads(row.body)["number"] in _singles(chaos)
        expected = int(row.state == "completed" and bool(ran_here))
        if (found := written.pop(row.id, 0)) != expected:
            (report.doubled if found > expected else report.lost).append(
                f"effects: {row.id} has {found}, not {expected}"
            )
    report.ghosts += [f"ghost: an effect of {delivery}" for delivery in written]


def _singles(chaos: Chaos) -> set[int]:
    return {launch.number for launch in chaos.launches.values() if launch.action == "single"}


def _told(runs: list[Run]) -> str:
    return "; ".join(map(str, runs))
