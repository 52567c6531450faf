"""The end of a scenario: it becomes quiet, and is examined."""

from __future__ import annotations

from collections.abc import Collection

from tests.chaos.driver import Chaos
from tests.chaos.invariants import Report, examine


def settled(scenario: Chaos, *, deadly: Collection[int] = ()) -> Report:
    """Wait until it is quiet, show the report and check it."""
    waited = scenario.wait_quiet()
    report = examine(scenario, deadly=deadly)
    print(f"{report}; quiet after {waited:.1f} s")
    report.check()
    return report
