"""python -m tests.chaos.chaos: the random killer for hours, over all databases, in rounds.

Each round has a seed, one more than the round's before it, and a fresh database. What is struck,
and when, follows from the seed; what a strike meets does not quite. A round that found trouble is
printed with the command that repeats it, and its folder is kept. ``--resume FILE`` keeps the state
after each round, and goes on from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import driver
from tests.chaos.invariants import Report, examine
from tests.chaos.rounds import DATABASES, PLANS, go


@dataclass
class Totals:
    """What all rounds so far have come to."""

    rounds: int = 0
    seconds: float = 0.0
    launched: int = 0
    accepted: int = 0
    runs: int = 0
    strikes: dict[str, int] = field(default_factory=dict)
    reloads: int = 0
    overdue: int = 0
    plans: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    ghosts: int = 0
    duplicates: int = 0
    allowed: int = 0
    doubled: int = 0
    slowest_recovery: float = 0.0
    troubles: list[str] = field(default_factory=list)

    def add(self, report: Report, plan: str, reloads: int) -> None:
        self.rounds += 1
        self.launched += report.launched
        self.accepted += report.accepted
        self.runs += report.runs
        self.strikes = dict(Counter(self.strikes) + Counter(report.strikes))
        self.plans = dict(Counter(self.plans) + Counter([plan]))
        self.reloads += reloads
        self.overdue += report.overdue
        self.lost += len(report.lost)
        self.ghosts += len(report.ghosts)
        self.duplicates += report.duplicates
        self.allowed += report.allowed
        self.doubled += len(report.doubled)
        self.slowest_recovery = max(self.slowest_recovery, report.slowest_recovery)

    def table(self) -> str:
        strikes = {**self.strikes, "graceful reload": self.reloads}
        rows = [
            ("rounds", f"{self.rounds} ({_counted(self.plans)})"),
            ("hours", f"{self.seconds / 3600:.2f}"),
            ("launches accepted", f"{self.accepted} of {self.launched}"),
            ("runs of receivers", f"{self.runs}"),
            ("runs that were overdue", f"{self.overdue}"),
            *sorted((kind, str(number)) for kind, number in strikes.items()),
            ("lost", str(self.lost)),
            ("ghosts", str(self.ghosts)),
            ("duplicates", str(self.duplicates)),
            ("duplicates allowed", str(self.allowed)),
            ("duplicates that no strike explains", str(self.doubled)),
            ("slowest recovery", f"{self.slowest_recovery:.2f} s"),
        ]
        return "\n".join(["| what | figure |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def main() -> int:
    options = _options()
    for number in (signal.SIGINT, signal.SIGTERM):  # Where it runs in the background, too.
        signal.signal(number, lambda *_: sys.exit("ended early; --resume goes on"))
    totals = _resumed(options.resume)
    ends_at = time.monotonic() + options.hours * 3600
    while time.monotonic() < ends_at and (options.rounds is None or options.rounds > 0):
        seed = options.seed + totals.rounds
        kind = options.database or DATABASES[totals.rounds % len(DATABASES)]
        began = time.monotonic()
        _round(totals, kind, seed, options.plan)
        totals.seconds += time.monotonic() - began
        if options.rounds is not None:
            options.rounds -= 1
        if options.resume is not None:
            draft = options.resume.with_suffix(".draft")
            draft.write_text(json.dumps(asdict(totals), indent=1))
            draft.replace(options.resume)
    print(f"\n{totals.table()}")
    for trouble in totals.troubles:
        print(f"- {trouble}")
    return 1 if totals.troubles else 0


def _round(totals: Totals, kind: str, seed: int, plan: str | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{kind}-{seed}-"))
    with driver.chaos(folder, kind, seed=seed) as scenario:
        plan = go(scenario, plan)
        waited = scenario.wait_quiet()
        report = examine(scenario)
        totals.add(report, plan, scenario.reloads)
        strikes = [asdict(strike) for strike in scenario.strikes]
        (folder / "strikes.json").write_text(json.dumps(strikes, indent=1))
    print(f"{kind} {seed} {plan}: {report}; quiet after {waited:.1f} s", flush=True)
    troubles = report.lost + report.ghosts + report.doubled
    if not troubles:
        shutil.rmtree(folder)
        return
    totals.troubles.append(
        f"{len(troubles)} troubles; repeat: python -m tests.chaos.chaos --database {kind} "
        f"--seed {seed} --plan {plan} --rounds 1 (what was seen is in {folder})"
    )
    print("\n".join(troubles[:40]), flush=True)


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.chaos", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, help="at most so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--database", choices=DATABASES, help="default: each in turn")
    parser.add_argument("--plan", choices=PLANS, help="default: as the seed says")
    parser.add_argument("--resume", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    return options


def _resumed(path: Path | None) -> Totals:
    return (
        Totals(**json.loads(path.read_text())) if path is not None and path.exists() else Totals()
    )


def _counted(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(numbers.items()))


if __name__ == "__main__":
    sys.exit(main())
