"""A real server for one system: gunicorn with threads, the system's workers, the event logs."""

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
from uuid import uuid4

from .client import Connection, closed_loop
from .deployment import Deployment, EventLog, event_logs
from .systems import Command, System, database

#: Threads of each web process.
THREADS = 8

#: Seconds that a server has to start, and to stop.
_START, _STOP = 20.0, 20.0

#: Seconds without an event after which what has not run counts as never.
_PATIENCE = 5.0

#: Launches of one request, where only their number matters.
_PER_REQUEST = 10

_ROOT = Path(__file__).parents[1]


@dataclass
class Server:
    """A running server. It numbers its launches, so that each can be told from all others.

    Times are CLOCK_MONOTONIC's nanoseconds: when its first process was started, and when it began
    to serve its first visitor.
    """

    system: System
    port: int
    starts: EventLog
    ends: EventLog
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
        """Return the paths of ``requests``, each of which makes ``launches``."""
        numbers = self.numbers(requests * launches)
        return [f"/trigger/{first}/{launches}" for first in numbers[::launches]]

    def launch(self, launches: int) -> range:
        """Have so many launches accepted as soon as possible; return their numbers."""
        first = self.launched
        paths = self.triggers(-(-launches // _PER_REQUEST), _PER_REQUEST)
        closed_loop(self.port, paths, connections=THREADS)
        return range(first, self.launched)

    def warm_up(self) -> None:
        """Have every thread and worker started, and everything imported; tasks must take time."""
        self.launch(2 * THREADS * _PER_REQUEST)
        self.ends.wait(self.launched, patience=20.0)

    def settle(self) -> None:
        """Return when everything that was launched has run, or when nothing runs any more."""
        if self.system.defers:
            self.starts.wait(self.launched, patience=_PATIENCE)

    @property
    def is_settled(self) -> bool:
        return not self.system.defers or self.starts.count >= self.launched

    def kill(self) -> None:
        """Kill the whole process tree at once, and return when it is dead."""
        self.is_killed = True
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@contextmanager
def deployed(system: System, *, task_seconds: float = 0.0) -> Iterator[Deployment]:
    """Prepare a deployment that no server has run in; remove it at the end."""
    name = f"benchmark_{uuid4().hex}"
    with (
        tempfile.TemporaryDirectory() as folder,
        database(system.backend, Path(folder), name) as url,
    ):
        deployment = Deployment(system.name, name, folder, _free_port(), url, task_seconds)
        _prepare(system, deployment)
        yield deployment


@contextmanager
def serving(system: System, deployment: Deployment, *, web_processes: int) -> Iterator[Server]:
    """Serve ``system``; stop it at the end, and show what it has printed if that matters."""
    environ = deployment.environ()
    server = Server(system, deployment.port, *event_logs(deployment))
    log, worker_log = (Path(deployment.folder, name) for name in ("log", "worker-log"))
    web_command = _gunicorn(deployment.port, web_processes)
    with ExitStack() as opened:
        for command in system.workers:
            worker = opened.enter_context(_process(command, environ, worker_log))
            server.pids.append(worker.pid)
        opened.callback(_show_logs, server, log, worker_log)
        web = opened.enter_context(_process(web_command, environ, log))
        server.pids.append(web.pid)
        server.served_at = _await_answer(deployment.port, web)
        yield server


def _prepare(system: System, deployment: Deployment) -> None:
    if not system.prepare:
        return
    done = subprocess.run(
        system.prepare, cwd=_ROOT, env=deployment.environ(), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{system.label} could not be prepared:\n{done.stderr}")


def _gunicorn(port: int, processes: int) -> Command:
    return (
        *(sys.executable, "-m", "gunicorn", "benchmarks.app:create_app()"),
        *("--bind", f"127.0.0.1:{port}", "--worker-class", "gthread", "--log-level", "warning"),
        *("--workers", str(processes), "--threads", str(THREADS)),
    )


@contextmanager
def _process(command: Command, environ: dict[str, str], log: Path) -> Iterator[_Process]:
    """Run ``command`` in a process group of its own; stop it at the end."""
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


def _show_logs(server: Server, log: Path, worker_log: Path) -> None:
    """Print the end of what the web processes wrote, and of what workers did if work is missing.

    Workers write at length in any case.
    """
    logs = [log] if server.is_settled or server.is_killed else [log, worker_log]
    for path in logs:
        if path.exists() and (lines := path.read_text(errors="replace").splitlines()[-5:]):
            print(f"{server.system.label} says:", *lines, sep="\n", file=sys.stderr)


_Process = subprocess.Popen[bytes]
