"""Real servers: how each is started, waited for and ended, whatever its command is.

Nothing here knows an app of the tests, so that whoever measures servers can start them so too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from tests.support.waiting import BOUND, wait_until

#: The project's folder. Started there, ``python -m`` finds every package of the project.
ROOT = Path(__file__).parents[2]

T = TypeVar("T")


class ServerProcess:
    """Start ``command`` in a process group of its own; write what it prints to ``log_path``.

    ``environ`` is its whole environment, by default this process's. As a context manager, it
    kills the group at the end.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        environ: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self.log_path = log_path
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environ, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_ready(self, is_ready: Callable[[], T | None], *, bound: float = BOUND) -> T:
        """Return what ``is_ready`` returns once that is true; fail if the server ends before."""

        def is_over() -> bool:
            return self.process.poll() is not None

        ready: T = wait_until(lambda: is_ready() or is_over(), "the server's start", bound=bound)
        assert not is_over(), self.log
        return ready

    def stop(self, how: signal.Signals = signal.SIGTERM, *, bound: float = BOUND) -> int:
        """Ask the server to end in order; return its exit status once it has."""
        self.process.send_signal(how)
        return self.process.wait(bound)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the server and all that it started, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kill the server and all that it started."""
        self.signal_group(signal.SIGKILL)
        self.process.wait(BOUND)


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(address: tuple[str, int] | str) -> bool:
    """Tell whether something accepts connections at ``address``."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def state_in(stat: Path) -> str:
    """Return the letter of the state that a process or thread is in; X if it is gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_alive(pid: int) -> bool:
    """Tell whether it runs, or could; a zombie has ended."""
    return state_in(Path(f"/proc/{pid}/stat")) not in "ZX"
