"""What is done to servers. Each death and each freeze is noted as a strike."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.chaos.driver import Chaos
from tests.chaos.launches import Strike
from tests.chaos.under_fire import Server, Target, Worker
from tests.support.servers import is_alive, state_in
from tests.support.waiting import BOUND, wait_until

#: Seconds that a stop may take at most; a process that somebody else wakes never stops.
_MOMENT = 1.0


def kill(chaos: Chaos, *pids: int, kind: str = "kill -9") -> float:
    """Kill processes; return when the last of them was dead."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "their death")
    return note_deaths(chaos, pids, kind)


def note_deaths(chaos: Chaos, pids: tuple[int, ...] | list[int], kind: str) -> float:
    """Note that these processes died, by whatever hand."""
    now = time.monotonic()
    chaos.strikes += [Strike(kind, pid, now, now) for pid in pids]
    return now


def kill_group(chaos: Chaos, target: Target) -> float:
    """Kill a parent and its children at once."""
    pids = [target.site.process.pid, *target.children()]
    for pid in pids:  # So that no master makes another child in between.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    pids = [target.site.process.pid, *target.children()]
    target.site.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "their death")
    return note_deaths(chaos, pids, "kill -9 of the group")


def kill_parent(chaos: Chaos, worker: Worker) -> None:
    """Kill a worker's parent alone, which no run is to notice: its child ends in order."""
    orphans = worker.children()
    worker.site.process.kill()
    worker.site.process.wait(BOUND)
    note_deaths(chaos, [worker.site.process.pid], "kill -9 of a parent")
    wait_until(lambda: not any(is_alive(pid) for pid in orphans), "the orphan's orderly end")


def replace(worker: Worker) -> None:
    """Ask a worker to end, wait until it has, and start another, as a deploy does."""
    worker.site.stop()
    worker.restart()


@contextmanager
def frozen(chaos: Chaos, *pids: int) -> Iterator[None]:
    """Stop processes until the block ends."""
    began = time.monotonic()
    strikes = [Strike("SIGSTOP", pid, began, float("inf")) for pid in pids]
    chaos.strikes += strikes
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        _let_stop(pids)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for strike in strikes:
            strike.until = time.monotonic()


def _let_stop(pids: tuple[int, ...]) -> None:
    """Wait a moment, for a signal takes one to reach a thread that runs on another processor."""
    until = time.monotonic() + _MOMENT
    while time.monotonic() < until and not all(map(_is_still, pids)):
        time.sleep(0.001)


def _is_still(pid: int) -> bool:
    """Tell whether each thread of a process is stopped, or gone."""
    try:
        stats = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    except OSError:  # It ended just now.
        return True
    return all(state_in(stat) in "TtZX" for stat in stats)


def frozen_until_outrun(chaos: Chaos, pid: int, number: int) -> dict[str, Any]:
    """Freeze who runs ``number`` until another run has completed it; return its row as it is then.

    What held the runs up no longer does.
    """
    with frozen(chaos, pid):
        chaos.hold.unlink()
        wait_until(lambda: chaos.row(number)["state"] == "completed", "another run's end")
        return dict(chaos.row(number))


def hang_up(server: Server) -> set[int]:
    """Ask for a graceful reload; return the workers it replaces."""
    old = set(server.children())
    server.site.process.send_signal(signal.SIGHUP)
    return old


def reload(server: Server) -> None:
    """Reload gracefully, and wait until every worker is a new one that has served."""
    old = hang_up(server)
    wait_until(lambda: not any(is_alive(pid) for pid in old), "the old workers' end")
    server.wait_ready()


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Be the one who writes to a SQLite file until the block ends."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()
