"""Workers under fire: killed, orphaned, frozen, replaced, alone and beside a server that relays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import Chaos, chaos
from tests.chaos.faults import frozen_until_outrun, kill, kill_parent
from tests.chaos.killer import rampage
from tests.chaos.settling import settled
from tests.chaos.under_fire import Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SECONDS = 4.0


def only_adding(scenario: Chaos) -> Server:
    """Serve visitors whose launches are left to workers."""
    return scenario.serve(workers=1, SITE_ASYNC_HOOKS_RELAY="false")


@pytest.mark.parametrize(
    ("kind", "number", "relay"),
    [
        ("sqlite", 2, "false"),
        ("postgresql", 8, "true"),
        ("app", 2, "false"),
    ],
)
def test_a_random_killer_loses_nothing(tmp_path: Path, kind: str, number: int, relay: str) -> None:
    with chaos(tmp_path, kind, seed=1) as scenario:
        server = scenario.serve(SITE_ASYNC_HOOKS_RELAY=relay, SITE_ASYNC_HOOKS_MAX_CRASHES="1000")
        workers = scenario.work(number, "--concurrency", "2", SITE_ASYNC_HOOKS_MAX_CRASHES="1000")
        with scenario.load(server):
            rampage(scenario, SECONDS, *workers, server)
        assert settled(scenario).strikes


def test_each_delivery_in_a_process_of_its_own_some_of_which_are_killed(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = only_adding(scenario)
        scenario.work(2, "--fresh")
        scenario.launch(server, takes=0.2, times=6)
        for number in (1, 3):
            pid = scenario.wait_for("begin", number)[-1]["pid"]
            kill(scenario, pid)
        settled(scenario)
        assert len({line["pid"] for line in scenario.lines("begin")}) >= 6


def test_the_death_of_a_parent_alone_doubles_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = only_adding(scenario)
        (worker,) = scenario.work(1, "--concurrency", "2")
        scenario.launch(server, takes=0.5, times=6)
        scenario.wait_for("begin", 2)
        kill_parent(scenario, worker)
        worker.restart()
        assert settled(scenario).duplicates == 0


def test_a_frozen_worker_that_goes_on_changes_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = only_adding(scenario)
        scenario.work(2)
        scenario.hold.touch()
        scenario.launch(server)
        number = scenario.last.number
        pid = scenario.begin_of(number)["pid"]
        before = frozen_until_outrun(scenario, pid, number)
        late = wait_until(lambda: scenario.lines("end")[1:], "the late end")
        assert late[-1]["pid"] == pid
        scenario.launch(server, times=4)
        assert settled(scenario).duplicates == 1
        assert dict(scenario.row(number)) == before
