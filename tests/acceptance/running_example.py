"""A running ``python -m example_site``, and a visitor of it."""

from __future__ import annotations

import html
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import requests

from tests.support.servers import ROOT, ServerProcess, free_port
from tests.support.waiting import wait_until

#: Seconds after which what has not happened will not happen.
BOUND = 60.0

#: A lead that lacks nothing.
ADA = {"name": "Ada Lovelace", "email": "ada@example.com", "message": "A walled garden, please."}


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for ``condition``, and fail naming ``what`` if it never comes."""
    wait_until(condition, what, bound=BOUND)


def run(folder: Path, port: int | str) -> subprocess.CompletedProcess[str]:
    """Run an example that ends by itself."""
    command = [sys.executable, "-m", "example_site"]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PORT": str(port), "INSTANCE_PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=BOUND,
    )


class Example(ServerProcess):
    """The real thing, in a process group of its own, as in a terminal."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        log_path = folder.with_suffix(".log")
        log_path.unlink(missing_ok=True)  # because an example before it wrote there, too
        settings = {f"EXAMPLE_{name}": value for name, value in settings.items()}
        settings |= {"PORT": str(self.port), "INSTANCE_PATH": str(folder)}
        command = [sys.executable, "-m", "example_site"]
        super().__init__(command, log_path, environ=os.environ | settings)
        self.wait_ready(lambda: self.url in self.log, bound=BOUND)

    def processes(self) -> dict[int, str]:
        """Return the ids and commands of all that this example consists of."""
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,pgid=,stat=,args="], capture_output=True, text=True, check=True
        )
        rows = (line.split(maxsplit=3) for line in listed.stdout.splitlines())
        return {
            int(pid): args
            for pid, group, state, args in rows
            if int(group) == self.process.pid and not state.startswith("Z")
        }

    def partner_pid(self) -> int:
        return next(pid for pid, args in self.processes().items() if "partners" in args)

    def worker_pids(self) -> list[int]:
        others = (self.process.pid, self.partner_pid())
        return [pid for pid in self.processes() if pid not in others]

    def press_ctrl_c(self) -> None:
        self.signal_group(signal.SIGINT)

    def kill(self) -> None:
        """Kill all of it at once, as a power cut would."""
        super().kill()
        until(lambda: not self.processes(), "the end of all processes")

    def database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "site.db")

    def stop(self, how: signal.Signals = signal.SIGINT, *, bound: float = BOUND) -> int:
        """End all of it, if it has not ended yet, and return the exit status."""
        if self.process.poll() is None:
            self.signal_group(how)
        return self.process.wait(bound)


class Visitor:
    """A browser without JavaScript."""

    def __init__(self, example: Example) -> None:
        self._url = example.url
        self._session = requests.Session()
        self._session.trust_env = False

    def get(self, path: str) -> Page:
        return Page(self._session.get(self._url + path, timeout=BOUND))

    def post(self, path: str, **fields: str) -> Page:
        """Post without following the redirect."""
        return Page(
            self._session.post(self._url + path, data=fields, timeout=BOUND, allow_redirects=False)
        )

    def submit(self, **fields: str) -> Page:
        return self.post("/", csrf_token=self.get("/").csrf_token, **fields)

    def submit_lead(self, **fields: str) -> str:
        """Send a lead that lacks nothing, and return the path of its page."""
        answer = self.submit(**ADA | fields)
        assert answer.status == 303, answer.text
        return answer.location.removesuffix("/thanks")

    def send_again(self, path: str, partner: str) -> Page:
        token = self.get(path).csrf_token or self.get("/").csrf_token
        return self.post(f"{path}/calls/{partner}/again", csrf_token=token)

    def wait_for(self, path: str, partner: str, state: str) -> None:
        until(lambda: self.get(path).state(partner) == state, f"{partner} {state}")

    def wait_for_all(self, path: str) -> Page:
        until(lambda: not self.get(path).is_unfinished, "the end of all calls")
        return self.get(path)


class Page:
    """An answer, and what a test wants to know of it."""

    def __init__(self, response: requests.Response) -> None:
        self.status = response.status_code
        self.text = response.text
        self.location = response.headers.get("Location", "")

    @property
    def words(self) -> str:
        """Return what a visitor reads."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.text)).split())

    @property
    def csrf_token(self) -> str:
        found = re.search(r'name="csrf_token"[^>]* value="([^"]+)"', self.text)
        return found[1] if found else ""

    @property
    def is_unfinished(self) -> bool:
        return "data-unfinished" in self.text

    def call(self, partner: str) -> str:
        found = re.search(rf'<li class="card" id="{partner}">.*?</li>', self.text, re.DOTALL)
        assert found, self.text
        return found[0]

    def state(self, partner: str) -> str:
        found = re.search(r'class="badge (\w+)"', self.call(partner))
        assert found
        return found[1]

    def attempts(self, partner: str) -> int:
        found = re.search(r'class="attempts">(\d+) of', self.call(partner))
        assert found
        return int(found[1])

    def time(self, partner: str, which: str) -> datetime:
        found = re.search(rf'class="{which}" datetime="([^"]+)"', self.call(partner))
        assert found, self.call(partner)
        return datetime.fromisoformat(found[1])
