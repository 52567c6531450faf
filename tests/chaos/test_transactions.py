"""The outbox is the app's own: what commits is sent, what is rolled back never was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import chaos
from tests.chaos.faults import kill
from tests.chaos.launches import Fate
from tests.chaos.settling import settled

pytestmark = pytest.mark.slow

KEPT = ("commit", "read", "late", "nested", "twice")
DROPPED = ("rollback", "savepoint", "forgotten")


def test_a_launch_shares_the_fate_of_the_apps_transaction(tmp_path: Path) -> None:
    with chaos(tmp_path, "app") as scenario:
        server = scenario.serve()
        for _ in range(3):
            for how in KEPT + DROPPED:
                assert scenario.write(server, how) is Fate.ACCEPTED, how
        report = settled(scenario)
        assert (report.runs, report.duplicates) == (18, 0)


def test_a_killed_receivers_writes_are_there_once(tmp_path: Path) -> None:
    with chaos(tmp_path, "app") as scenario:
        server = scenario.serve()
        for _ in range(4):
            scenario.launch(server, "split", takes=0.5, times=2)
            scenario.write(server, "twice")
            seen = len(scenario.lines("begin"))
            kill(scenario, scenario.wait_for("begin", seen + 1)[-1]["pid"])
            server.wait_ready()
        settled(scenario)
