"""A real server for one system: gunicorn with threads, the system's worker, its notebook."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from . import usage
from .client import Connection
from .environment import variables
from .notes import Notebook, notebooks
from .stores import database
from .system import System, python

THREADS = 8

#: Seconds that a server has to start, and to stop.
_START, _STOP = 20.0, 20.0

#: Seconds without news after which what has not run counts as never.
_PATIENCE = 5.0

_ROOT = Path(__file__).parents[1]


class Home(NamedTuple):
    """What a server leaves to the next one in its place."""

    folder: Path
    port: int
    database_url: str
    environ: dict[str, str]


@dataclass
class Site:
    """A running server. It numbers its launches, so that each can be told from all others.

    Times are CLOCK_MONOTONIC's nanoseconds: when its first process was started, and when it began
    to serve its first visitor.
    """

    system: System
    port: int
    notes: Notebook
    ends: Notebook
    launched: int = 0
    started_at: int = field(default_factory=time.monotonic_ns)
    served_at: int = 0
    #: Of the commands that were started; their children belong to it as well.
    pids: list[int] = field(default_factory=list)
    is_killed: bool = False

    def numbers(self, launches: int) -> range:
        """Return the numbers of the next ``launches`` launches."""
        first = self.launched
        self.launched += launches
        return range(first, self.launched)

    def triggers(self, requests: int, launches: int = 1) -> list[str]:
        """Return the paths of so many requests, each of which makes so many launches."""
        numbers = self.numbers(requests * launches)
        return [f"/trigger/{first}/{launches}" for first in numbers[::launches]]

    @property
    def is_settled(self) -> bool:
        return not self.system.defers or len(self.notes.read()) >= self.launched

    def settle(self) -> None:
        """Return when everything that was launched has run, or when nothing comes any more."""
        if self.system.defers:
            self.notes.wait(self.launched, patience=_PATIENCE)

    def kill(self) -> None:
        """Kill the whole process tree at once, and return when it is dead."""
        self.is_killed = True
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def rest(self) -> None:
        """Return when its processes have nothing left to do, as far as one sees."""
        usage.await_idle(self.pids)

    def cpu_seconds(self) -> float:
        return usage.cpu_seconds(self.pids)

    def memory_megabytes(self) -> float:
        return usage.memory_megabytes(self.pids)


@contextmanager
def running(system: System, *, workers: int) -> Iterator[Site]:
    """Serve ``system`` with ``workers`` web processes."""
    with fresh_home(system) as home, serving(system, home, workers=workers) as site:
        yield site


@contextmanager
def fresh_home(system: System, *, task_seconds: float = 0.0) -> Iterator[Home]:
    """Give ``system`` a home where each task sleeps for ``task_seconds``."""
    name = f"benchmark_{uuid4().hex}"
    with tempfile.TemporaryDirectory() as path, database(system.store, Path(path), name) as url:
        environ = variables(Path(path), name, url, task_seconds)
        _prepare(system, environ)
        yield Home(Path(path), _free_port(), url, environ)


@contextmanager
def serving(system: System, home: Home, *, workers: int) -> Iterator[Site]:
    """Serve ``system`` at ``home`` with ``workers`` web processes."""
    folder, port, _, environ = home
    site = Site(system, port, *notebooks(folder))
    with ExitStack() as opened:
        log, worker_log = folder / "log", folder / "worker-log"
        for command in system.workers:
            worker = opened.enter_context(_process(command, environ, worker_log))
            site.pids.append(worker.pid)
        if system.workers:
            opened.callback(_tell_if_unsettled, site, worker_log)
        opened.callback(_tell, system, log)
        web = opened.enter_context(_process(_gunicorn(system, port, workers), environ, log))
        site.pids.append(web.pid)
        site.served_at = _await_answer(port, web)
        yield site


def _prepare(system: System, environ: dict[str, str]) -> None:
    if system.prepare:
        done = subprocess.run(
            system.prepare, cwd=_ROOT, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{system.label} could not be prepared:\n{done.stderr}")


def _gunicorn(system: System, port: int, workers: int) -> tuple[str, ...]:
    return (
        *python("gunicorn", system.factory),
        *("--bind", f"127.0.0.1:{port}", "--worker-class", "gthread", "--log-level", "warning"),
        *("--workers", str(workers), "--threads", str(THREADS)),
    )


@contextmanager
def _process(command: tuple[str, ...], environ: dict[str, str], log: Path) -> Iterator[_Process]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=environ, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _await_answer(port: int, web: _Process) -> int:
    """Return when the server began to serve its first visitor."""
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and web.poll() is None:
        try:
            with Connection(port) as connection:
                return connection.get("/noop").started_at
        except OSError:
            time.sleep(0.05)
    raise SystemExit("The server did not start.")


def _tell_if_unsettled(site: Site, log: Path) -> None:
    # Workers greet and warn at length; what they say matters when work is missing.
    if not (site.is_settled or site.is_killed):
        _tell(site.system, log)


def _tell(system: System, log: Path) -> None:
    """Pass on the last of what a server wrote, if it wrote anything."""
    if lines := log.read_text(errors="replace").splitlines()[-5:]:
        print(f"{system.label} says:", *lines, sep="\n", file=sys.stderr)


_Process = subprocess.Popen[bytes]
