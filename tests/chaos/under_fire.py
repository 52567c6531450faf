"""A gunicorn under fire."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from running import HERE as SERVERS
from running import Site, gunicorn, wait_until
from visitors import Door

HERE = Path(__file__).parent


class Server:
    """A gunicorn under fire, in a process group of its own."""

    def __init__(
        self,
        folder: Path,
        port: int,
        workers: int,
        options: Sequence[str],
        environ: dict[str, str],
    ) -> None:
        self._folder = folder
        self._options = options
        self.door = Door(port=port)
        self.url = f"http://127.0.0.1:{port}"
        self.workers = workers
        self._environ = environ
        self.site = self._begin()

    def _begin(self) -> Site:
        options = ["-w", str(self.workers), "-k", "gthread", "--threads", "8", *self._options]
        ready = str(SERVERS / "gunicorn_ready.py")
        bind = f"127.0.0.1:{self.door.port}"
        command = gunicorn(*options, "-c", ready, "-b", bind, app="chaos_app:app")
        return Site(self._folder, command, HERE, self._environ)

    def children(self) -> list[int]:
        """Return the pids of the worker processes that live."""
        pid = self.site.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return []
        return [int(child) for child in children if is_alive(int(child))]

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

    def restart(self) -> None:
        self.site = self._begin()

    def end(self) -> None:
        for pid in [self.site.process.pid, *self.children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.site.kill()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
