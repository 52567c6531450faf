"""The outbox can't be reached, is locked, or full: callers are told, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.chaos.driver import Chaos, chaos
from tests.chaos.faults import locked
from tests.chaos.launches import Fate
from tests.chaos.proxies import Wire, wire
from tests.chaos.settling import settled
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@contextmanager
def wired(scenario: Chaos) -> Iterator[tuple[Wire, str]]:
    """Put a wire before the scenario's database; give it, and the URL to use."""
    url = make_url(scenario.url)
    assert url.port is not None
    with wire(url.port) as carried:
        through = url.set(port=carried.port).render_as_string(hide_password=False)
        yield carried, through


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "app"])
def test_a_database_that_comes_and_goes_loses_and_doubles_nothing(
    tmp_path: Path, kind: str
) -> None:
    with chaos(tmp_path, kind) as scenario, wired(scenario) as (carried, url):
        server = scenario.serve(url=url)
        with scenario.load(server):
            for _ in range(2):
                time.sleep(0.7)  # The fault's own duration, as below.
                carried.cut()
                time.sleep(1.0)
                carried.mend()
        assert {launch.status for launch in scenario.launches.values()} <= {200, 500}
        settled(scenario)


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_long_outage_takes_no_living_process_for_dead(tmp_path: Path, kind: str) -> None:
    with chaos(tmp_path, kind) as scenario, wired(scenario) as (carried, url):
        servers = [scenario.serve(url=url) for _ in range(2)]
        scenario.hold.touch()
        for server in servers:
            scenario.launch(server, times=6)
        scenario.wait_for("begin", 6)
        carried.cut()
        time.sleep(3 * scenario.lease)
        carried.mend()
        time.sleep(1.5 * scenario.lease)  # Time enough to take one for dead.
        scenario.hold.unlink()
        assert settled(scenario).duplicates == 0


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_database_that_falls_silent_loses_and_doubles_nothing(tmp_path: Path, kind: str) -> None:
    with chaos(tmp_path, kind) as scenario, wired(scenario) as (carried, url):
        server = scenario.serve(url=url)
        with scenario.load(server):
            time.sleep(0.5)  # The fault's own duration, as below.
            with carried.stalled():
                time.sleep(1.5 * scenario.lease)
        assert settled(scenario).duplicates == 0


def test_a_locked_file_is_told_to_callers_and_doubles_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve()
        scenario.launch(server, takes=0.5, times=8)
        scenario.wait_for("begin", 4)
        with locked(str(tmp_path / "outbox.db")):
            for _ in range(2):  # Each waits for as long as the outbox is patient.
                assert scenario.launch(server) is Fate.MAYBE
                assert scenario.last.status == 500
        assert "outcome not recorded" in server.site.log
        assert settled(scenario).duplicates == 0


def test_launches_after_their_file_was_removed_are_kept_and_run(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve()
        scenario.launch(server, times=4)
        scenario.wait_for("kept", 4)
        for file in tmp_path.glob("outbox.db*"):
            file.unlink()
        scenario.engine.dispose()
        for _ in range(18):
            assert scenario.launch(server) is Fate.ACCEPTED
        scenario.wait_for("kept", 22)
        assert {row.state for row in scenario.rows()} == {"completed"}
        assert len(scenario.rows()) == 18
        assert "was removed or replaced" in server.site.log
        assert "had vanished, and were made anew" in server.site.log


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of a megabyte; needs the right to."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("A small disk can't be mounted here.")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on ``disk``; return the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_is_told_to_callers_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk, chaos(tmp_path) as scenario:
        # The ledger lies elsewhere, and the outbox on the disk.
        scenario.relocate(disk / "outbox.db")
        server = scenario.serve()
        scenario.hold.touch()
        scenario.launch(server, times=8)
        scenario.wait_for("begin", 4)
        filler = fill(disk)
        wait_until(lambda: scenario.launch(server) is Fate.MAYBE, "a refused launch")
        assert scenario.last.status == 500
        scenario.hold.unlink()
        wait_until(lambda: "outcome not recorded" in server.site.log, "a refused completion")
        assert scenario.launch(server) is Fate.MAYBE
        filler.unlink()
        assert settled(scenario).duplicates == 0


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_loses_and_doubles_nothing(tmp_path: Path, hours: int) -> None:
    with chaos(tmp_path) as scenario:
        server = scenario.serve(CHAOS_CLOCK="1")
        scenario.hold.touch()
        scenario.launch(server, times=8)
        scenario.launch(server, "split", times=2)
        scenario.wait_for("begin", 4)
        (tmp_path / "clock.new").write_text(str(3600 * hours))
        (tmp_path / "clock.new").rename(tmp_path / "clock")
        scenario.launch(server, times=4)
        scenario.hold.unlink()
        assert settled(scenario).duplicates == 0
