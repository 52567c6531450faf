"""A server of one of the tests' own apps, which write what happens into a ledger."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.servers import ROOT, ServerProcess
from tests.support.waiting import wait_until

#: The app that most tests serve.
SHOP = "tests.support.shop:app"

#: The configuration of a gunicorn whose workers say when they are ready.
READY = "python:tests.support.gunicorn_ready"


class Site(ServerProcess):
    """A running server, its log, and the ledger that it shares with the test's other servers.

    ``environ`` is added to the environment of the test.
    """

    def __init__(
        self, folder: Path, command: list[str], environ: dict[str, str], *, cwd: Path = ROOT
    ) -> None:
        self.folder = folder
        self.hold = folder / "hold"
        shared = {"LEDGER": str(folder / "ledger"), "HOLD": str(self.hold)}
        log_path = folder / f"log-{len(list(folder.glob('log-*')))}"
        super().__init__(command, log_path, environ={**os.environ, **shared, **environ}, cwd=cwd)

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


@contextmanager
def running(
    folder: Path, command: list[str], is_up: Callable[[], bool], cwd: Path = ROOT, /, **environ: str
) -> Iterator[Site]:
    """Run a site until the block ends, and begin the block once ``is_up``."""
    with Site(folder, command, environ, cwd=cwd) as site:
        site.wait_ready(is_up)
        yield site


def gunicorn(*options: str, app: str = SHOP) -> list[str]:
    """Return the command of a gunicorn that serves ``app``."""
    quiet = ["--access-logfile", "-", "--no-control-socket", "--log-level", "info"]
    return [sys.executable, "-m", "gunicorn", *quiet, *options, app]
