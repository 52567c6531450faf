"""The app that the tests of limits start: each run sees for itself whether it should not run now.

``LEDGER`` names a file; each line is JSON. ``FOLDER`` is where the slots and versions lie.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flask import Flask, request

from async_hooks import AsyncHooks, AsyncTask
from tests.servers.workshop import note

hooks = AsyncHooks()

LIMIT = 2


@contextmanager
def slot(key: str) -> Iterator[int | None]:
    """Give a free slot of ``key``, None if there is none; the kernel frees a dead process' own."""
    with ExitStack() as stack:
        found = None
        for number in range(LIMIT):
            path = Path(os.environ["FOLDER"], f"slot-{key}-{number}")
            file = stack.enter_context(path.open("w"))
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = number
                break
        yield found


@hooks.register
class Limited(AsyncTask):
    action = "limited"
    name = "limited"
    limit = LIMIT

    def limit_key(self, data: dict[str, Any]) -> str:
        return f"account {data['key']}"

    def run_action(self, data: dict[str, Any]) -> None:
        with slot(data["key"]) as number:
            note(slot=number, key=data["key"])
            time.sleep(0.1)


@hooks.register
class Rated(AsyncTask):
    action = "rated"
    name = "rated"
    rate = "10/s"
    burst = 3

    def run_action(self, data: dict[str, Any]) -> None:
        note(rated=data["number"])


def version_of(document: str) -> int:
    return int(Path(os.environ["FOLDER"], document).read_text())


@hooks.job(name="index", unique_until="started", unique_key=lambda data: str(data["document"]))
def index(document: str) -> None:
    version = version_of(document)
    time.sleep(0.02)
    note(indexed=version, document=document)


@hooks.job(
    name="search",
    unique_key=lambda data: "search",
    debounce=0.4,
    debounce_max=1.2,
)
def search(words: str) -> None:
    note(searched=words)


def make_app(folder: str = "", **config: Any) -> Flask:
    app = Flask("limited", instance_path=folder or os.environ["FOLDER"])
    app.config.update(SECRET_KEY="a key for tests, thirty-two bytes or more", **config)
    app.config.from_prefixed_env("SITE")
    hooks.init_app(app)

    @app.post("/limited/<key>")
    def launch(key: str) -> str:
        return Limited.dispatch({"key": key, "pid": os.getpid(), "host": request.host})

    return app
