"""What is under fire: gunicorns and workers, each in a process group of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from tests.support.servers import is_alive
from tests.support.site import READY, Site, gunicorn
from tests.support.visitors import Door
from tests.support.waiting import wait_until


class Target:
    """A process that has children, which do the work."""

    def __init__(self, folder: Path, command: list[str], environ: dict[str, str]) -> None:
        self._folder = folder
        self._command = command
        self._environ = environ
        self.site = self._begin()

    def _begin(self) -> Site:
        return Site(self._folder, self._command, self._environ)

    def children(self) -> list[int]:
        """Return the pids of the child processes that live."""
        pid = self.site.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return []
        return [int(child) for child in children if is_alive(int(child))]

    def restart(self) -> None:
        self.site = self._begin()

    def end(self) -> None:
        for pid in [self.site.process.pid, *self.children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.site.kill()


class Server(Target):
    """A gunicorn."""

    def __init__(
        self,
        folder: Path,
        port: int,
        workers: int,
        options: Sequence[str],
        environ: dict[str, str],
    ) -> None:
        self.door = Door(port=port)
        self.url = f"http://127.0.0.1:{port}"
        self.workers = workers
        options = ["-w", str(workers), "-k", "gthread", "--threads", "8", *options]
        bind = f"127.0.0.1:{port}"
        command = gunicorn(*options, "-c", READY, "-b", bind, app="tests.chaos.chaos_app:app")
        super().__init__(folder, command, environ)

    def wait_ready(self) -> None:
        """Wait until each worker has served a visitor, which is when its relay begins."""
        seen: set[int] = set()

        def all_served() -> bool:
            seen.add(self.ask())
            children = set(self.children())
            return len(children) == self.workers and children <= seen

        wait_until(all_served, f"all workers' service: {self.site.log[-3000:]}")

    def ask(self) -> int:
        """Visit; return the pid of who answered, 0 if nobody did."""
        with suppress(OSError, HTTPException, ValueError):
            return int(self.door.get("/")[1])
        return 0


class Worker(Target):
    """A ``flask async-hooks worker``."""

    def __init__(self, folder: Path, options: Sequence[str], environ: dict[str, str]) -> None:
        flask = [sys.executable, "-m", "flask", "--app", "tests.chaos.chaos_app:app"]
        super().__init__(folder, [*flask, "async-hooks", "worker", *options], environ)
