"""The app that the tests of the worker start: a task that does what its data says, and notes it.

``LEDGER`` names a file; each line is JSON. What the test adds from its own process, workers run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, current_app

from async_hooks import AsyncHooks, AsyncTask, current_envelope
from async_hooks.signals import worker_error, worker_started, worker_stopped
from async_hooks.state import state_of

hooks = AsyncHooks()


def note(**facts: Any) -> None:
    """Append ``facts`` to the ledger, whole, whatever happens next."""
    descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, json.dumps({**facts, "pid": os.getpid()}).encode() + b"\n")
    os.close(descriptor)


def hold() -> None:
    while Path(os.environ["HOLD"]).exists():
        time.sleep(0.01)


def outlast() -> None:
    """Run a program until there is no ``HOLD``, and then until this process is told to end."""
    subprocess.run(["sh", "-c", "while [ -e $HOLD ]; do sleep 0.05; done"], check=True)
    relay: Any = state_of(current_app).relay
    assert relay._pool[os.getpid()].stopping.wait(30)


def fail() -> None:
    raise ValueError("no")


def interrupt() -> None:
    raise KeyboardInterrupt


def base() -> None:
    raise BaseException("no less")


def inherit() -> None:
    """Note how many sockets a program inherits that is started with all that it can."""
    command = ["sh", "-c", "ls -l /proc/$$/fd"]
    listed = subprocess.run(command, close_fds=False, capture_output=True, text=True, check=True)
    note(inherited=listed.stdout.count("socket:"))


def launch() -> None:
    Work.dispatch({"number": "urgent"}, priority=1)
    Work.dispatch({"number": "elsewhere"}, queue="other")


leaked: list[bytes] = []

DEEDS: dict[str, Callable[[], Any]] = {
    "": lambda: None,
    "leak": lambda: leaked.append(b"x" * 2**25),
    "hold": hold,
    "fail": fail,
    "interrupt": interrupt,
    "base": base,
    "exit": lambda: sys.exit(3),
    "leave": lambda: os._exit(0),
    "leave as if done": lambda: os._exit(80),
    "leave as if failed": lambda: os._exit(81),
    "leave as if misconfigured": lambda: os._exit(82),
    "leave as if used up": lambda: os._exit(83),
    "fork": lambda: os.waitpid(os.fork() or os._exit(80), 0),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "inherit": inherit,
    "crash": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "print": lambda: print("printed"),
    "outlast": outlast,
    "launch": launch,
}


@hooks.register
class Work(AsyncTask):
    action = "worked"
    name = "work"

    def backoff(self, attempt: int) -> float:
        return 3600

    def run_action(self, data: dict[str, Any]) -> None:
        note(begun=data["number"], id=current_envelope.id, attempt=current_envelope.attempt)
        DEEDS[data.get("do", "")]()
        if data.get("do") in ("print", "launch"):
            hold()
        note(number=data["number"], id=current_envelope.id)


def make_app(folder: str, **config: Any) -> Flask:
    app = Flask("workshop", instance_path=folder)
    app.config.update(SECRET_KEY="a key for tests, thirty-two bytes or more", **config)
    app.config.from_prefixed_env("SITE")
    hooks.init_app(app)
    return app


def create_app() -> Flask:
    """The app of the ``flask`` command."""
    note(loaded=os.getpid(), parent=os.getppid())

    def started(sender: Flask, *, name: str, queues: list[str] | None) -> None:
        note(started=name, queues=queues, app=current_app.name)

    def stopped(sender: Flask, *, name: str, queues: list[str] | None) -> None:
        note(stopped=name, queues=queues, app=current_app.name)

    def error(sender: Flask, *, name: str, exit_code: int | None, signal: int | None) -> None:
        note(died=name, exit_code=exit_code, signal=signal, app=current_app.name)

    worker_error.connect(error, weak=False)
    worker_started.connect(started, weak=False)
    worker_stopped.connect(stopped, weak=False)
    return make_app(os.environ["FOLDER"])
