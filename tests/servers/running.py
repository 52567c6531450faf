"""Real servers, started and stopped by the tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BOUND = 30.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(is_met: Callable[[], Any], what: str = "it", *, every: float = 0.01) -> Any:
    """Return what ``is_met`` returns once that is true; fail after a generous bound.

    It is asked ``every`` so many seconds.
    """
    deadline = time.monotonic() + BOUND
    while not (met := is_met()):
        assert time.monotonic() < deadline, f"{what} did not happen within {BOUND} seconds"
        time.sleep(every)
    return met


def state_in(stat: Path) -> str:
    """Return the letter of the state that a process or thread is in; X if it is gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_alive(pid: int) -> bool:
    """Tell whether it runs, or could; a zombie has ended."""
    return state_in(Path(f"/proc/{pid}/stat")) not in "ZX"


class Site:
    """A running server, its log, and the ledger that it shares with the test's other servers."""

    def __init__(
        self, folder: Path, command: list[str], cwd: Path, environ: dict[str, str]
    ) -> None:
        self.folder = folder
        self.hold = folder / "hold"
        self.log_path = folder / f"log-{len(list(folder.glob('log-*')))}"
        environ = {
            **os.environ,
            "LEDGER": str(folder / "ledger"),
            "HOLD": str(self.hold),
            **environ,
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environ, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def ledger(self) -> list[dict[str, Any]]:
        path = self.folder / "ledger"
        # What comes after the last line break is being written.
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def notes(self, key: str) -> list[dict[str, Any]]:
        """The ledger's lines that have ``key``."""
        return [line for line in self.ledger if key in line]

    def wait_for(self, key: str, count: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.notes(key)) >= count, f"{count} lines of {key!r}: {self.log}")
        return self.notes(key)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self) -> None:
        """Ask the server to end in order, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(BOUND)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(BOUND)


@contextmanager
def running(
    folder: Path, command: list[str], is_up: Callable[[], bool], *, cwd: Path = HERE, **environ: str
) -> Iterator[Site]:
    site = Site(folder, command, cwd, environ)
    try:
        wait_until(lambda: is_up() or site.process.poll() is not None, "the server's start")
        assert site.process.poll() is None, site.log
        yield site
    finally:
        site.kill()


def answers(address: tuple[str, int] | str) -> bool:
    """Tell whether something accepts connections at ``address``."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def gunicorn(*options: str, app: str = "shop:app") -> list[str]:
    quiet = ["--access-logfile", "-", "--no-control-socket", "--log-level", "info"]
    return [sys.executable, "-m", "gunicorn", *quiet, *options, app]
