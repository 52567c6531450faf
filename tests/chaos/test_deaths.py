"""Processes die, are frozen, replaced and told to end: nothing is lost, little runs twice."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.chaos.driver import Chaos, chaos
from tests.chaos.faults import frozen, frozen_until_outrun, kill, kill_group, note_deaths, reload
from tests.chaos.settling import settled
from tests.chaos.under_fire import Server
from tests.support.waiting import BOUND, wait_until

pytestmark = pytest.mark.slow


def term(scenario: Chaos, server: Server, kind: str) -> None:
    """Ask the server to end, wait, and start it again."""
    pids = [server.site.process.pid, *server.children()]
    server.site.process.send_signal(signal.SIGTERM)
    server.site.process.wait(BOUND)
    if kind:
        note_deaths(scenario, pids, kind)
    server.restart()
    server.wait_ready()


@pytest.mark.parametrize("kind", ["sqlite", "mariadb", "app"])
def test_a_killed_childs_runs_begin_again_at_once(tmp_path: Path, kind: str) -> None:
    with chaos(tmp_path, kind, lease=9.0) as scenario:
        server = scenario.serve()
        scenario.hold.touch()
        scenario.launch(server, times=8)
        pid = scenario.wait_for("begin", 4)[0]["pid"]
        kill(scenario, pid)
        scenario.hold.unlink()
        began = time.monotonic()
        report = settled(scenario)
        assert report.duplicates >= 1
        # Sooner than by its silence.
        assert time.monotonic() - began < scenario.lease / 2, report


@pytest.mark.parametrize(
    ("kind", "options"),
    [("postgresql", []), ("sqlite", ["-k", "gevent"]), ("sqlite", ["--preload"])],
    ids=["postgresql", "gevent", "preload"],
)
def test_a_killed_servers_runs_begin_again_when_it_is_back(
    tmp_path: Path, kind: str, options: list[str]
) -> None:
    with chaos(tmp_path, kind) as scenario:
        server = scenario.serve(options=options)
        scenario.hold.touch()
        scenario.launch(server, "split", times=3)
        scenario.launch(server, times=8)
        scenario.wait_for("begin", 4)
        kill_group(scenario, server)
        scenario.hold.unlink()
        server.restart()
        server.wait_ready()
        report = settled(scenario)
        assert report.duplicates == 4
        assert report.slowest_recovery < 15, report


def test_a_stop_waits_for_short_runs_and_none_runs_twice(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve()
        scenario.launch(server, takes=0.3, times=10)
        scenario.launch(server, "split", takes=0.3, times=3)
        scenario.wait_for("begin", 3)
        term(scenario, server, "")
        assert settled(scenario).duplicates == 0


def test_what_runs_longer_than_a_stop_waits_begins_again(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve(options=["--graceful-timeout", "2"], SITE_ASYNC_HOOKS_GRACE="1")
        scenario.hold.touch()
        scenario.launch(server, times=8)
        scenario.wait_for("begin", 4)
        term(scenario, server, "SIGTERM past the grace")
        scenario.hold.unlink()
        settled(scenario)


def test_reloads_under_load_run_nothing_twice(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve()
        with scenario.load(server):
            for number in range(1, 5):
                wait_until(lambda: len(scenario.launches) >= 20 * number, "enough visitors")  # noqa: B023
                reload(server)
        assert settled(scenario).duplicates == 0


def test_a_receiver_that_kills_its_process_is_discarded(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve(SITE_ASYNC_HOOKS_MAX_CRASHES="3")
        scenario.launch(server, how="die")
        deadly = scenario.last
        with scenario.load(server):
            wait_until(lambda: scenario.lines("discarded"), "the discard")
        begun = [line for line in scenario.lines("begin") if line["number"] == deadly.number]
        assert len(begun) == 3
        for line in begun:
            note_deaths(scenario, [line["pid"]], "by a receiver")
        settled(scenario, deadly=[deadly.number])
        row = scenario.row(deadly.number)
        assert (row["state"], row["crashes"]) == ("discarded", 3)
        assert row["error"]


def test_a_frozen_run_that_goes_on_changes_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve(SITE_ASYNC_HOOKS_TIMEOUT="5")
        scenario.hold.touch()
        scenario.launch(server)
        number = scenario.last.number
        pid = scenario.begin_of(number)["pid"]
        before = frozen_until_outrun(scenario, pid, number)
        late = wait_until(lambda: scenario.lines("rejected"), "the late end's refusal")
        assert any(line["pid"] == pid for line in late), late
        assert dict(scenario.row(number)) == before
        assert settled(scenario).duplicates == 1


def test_what_a_process_launches_after_its_burial_is_not_stuck(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        servers = [scenario.serve(workers=1) for _ in range(2)]
        (pid,) = servers[0].children()
        with frozen(scenario, pid):
            wait_until(lambda: pid not in scenario.processes(), "its rescue")
        scenario.hold.touch()
        scenario.launch(servers[0], times=1)
        kill(scenario, pid)
        scenario.hold.unlink()
        settled(scenario)


def test_eight_relays_on_one_table_double_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve(workers=8)
        for _ in range(10):
            scenario.launch(server, times=50)
        report = settled(scenario)
        assert (report.accepted, report.runs, report.duplicates) == (500, 500, 0)
        assert len({line["pid"] for line in scenario.lines("begin")}) == 8
