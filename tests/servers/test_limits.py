"""Limits hold in eight processes, web servers' and workers', some of which are killed all the time.

``LIMITS_TIMES`` multiplies the deliveries, and the deaths.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from sqlalchemy import select

from async_hooks.outbox.sql.schema import deliveries
from async_hooks.state import state_of
from tests.servers import limited_shop
from tests.support.databases import KINDS, fresh_database
from tests.support.servers import answers, free_port
from tests.support.site import Site, gunicorn
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

APP = "tests.servers.limited_shop:make_app"
TIMES = int(os.environ.get("LIMITS_TIMES", "1"))


class Shop:
    """Four web processes that relay and four workers, and an app here that adds to their outbox."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.environ = {
            "FLASK_APP": APP,
            "FOLDER": str(folder),
            "LEDGER": str(folder / "ledger"),
            "SITE_ASYNC_HOOKS_OUTBOX": url,
            "SITE_ASYNC_HOOKS_MAX_CRASHES": "1000",
            "SITE_ASYNC_HOOKS_LEASE": "3",
        }
        config: dict[str, Any] = {"ASYNC_HOOKS_OUTBOX": url, "ASYNC_HOOKS_RELAY": False}
        self.app: Flask = limited_shop.make_app(str(folder), **config)
        state: Any = state_of(self.app)
        self.outbox, self.database = state.outbox, state.store.database
        self.outbox.create()
        stack.callback(self.database.engine.dispose)
        self.port = free_port()
        options = ("-w", "4", "-k", "gthread", "--threads", "8", "-b", f"127.0.0.1:{self.port}")
        self.web = stack.enter_context(
            Site(folder, gunicorn(*options, app=f"{APP}()"), self.environ)
        )
        worker = [sys.executable, "-m", "flask", "async-hooks", "worker", "--concurrency", "2"]
        self.sites = [self.web]
        self.sites += [stack.enter_context(Site(folder, worker, self.environ)) for _ in range(4)]
        self.web.wait_ready(lambda: answers(("127.0.0.1", self.port)))
        wait_until(self._all_relay, "eight relays")

    def _all_relay(self) -> bool:
        with suppress(requests.RequestException):
            requests.get(f"http://127.0.0.1:{self.port}/", timeout=5)
        return len([relay for relay in self.outbox.relays() if relay.can_relay]) >= 8

    def launch(self, task: Any, data: dict[str, Any]) -> str:
        with self.app.app_context():
            launched: str = task.dispatch(data)
            return launched

    def visit(self, key: str) -> None:
        """Launch as a visitor does; again if the one who answers is killed."""
        while True:
            with suppress(requests.RequestException):
                url = f"http://127.0.0.1:{self.port}/limited/{key}"
                if requests.post(url, timeout=10).status_code == 200:
                    return

    def kill_some(self, number: int) -> None:
        for _ in range(number):
            time.sleep(random.uniform(0.1, 0.5))
            site = random.choice(self.sites)
            pid = site.process.pid
            with suppress(OSError, IndexError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                os.kill(int(random.choice(children)), signal.SIGKILL)

    def wait_done(self, task: str) -> None:
        def is_done() -> bool:
            return not self.outbox.count(["available", "executing"], task=task)

        wait_until(is_done, "the end of all", every=0.1, bound=60.0 * TIMES)

    def rows(self, task: str) -> list[Any]:
        found: list[Any] = self.database.execute(
            select(deliveries).where(deliveries.c.task == task).order_by(deliveries.c.started_at)
        ).rows
        return found


@pytest.fixture(scope="module", params=KINDS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        url = stack.enter_context(fresh_database(request.param, folder))
        yield Shop(url, folder, stack)


def test_never_more_run_than_the_limit_and_no_slot_is_lost(shop: Shop) -> None:
    keys, deaths = [f"k{number}" for number in range(4)], 12 * TIMES
    shop.outbox.pause("default")  # So that there is more to do than may be done at once.
    for number in range(120 * TIMES):
        shop.launch(limited_shop.Limited, {"key": keys[number % len(keys)]})
    killer = threading.Thread(target=lambda: shop.kill_some(deaths))
    shop.outbox.resume("default")
    killer.start()
    for number in range(40 * TIMES):
        shop.visit(keys[number % len(keys)])
    killer.join()
    shop.wait_done("limited")
    taken = [line["slot"] for line in shop.web.notes("slot")]
    assert None not in taken
    assert set(taken) == {0, 1}
    assert {row.state for row in shop.rows("limited")} == {"completed"}
    assert len(shop.rows("limited")) >= 160 * TIMES


def test_in_no_window_more_begin_than_the_rate_and_its_burst(shop: Shop) -> None:
    total = 40 * TIMES
    for number in range(total):
        shop.launch(limited_shop.Rated, {"number": number})
    shop.wait_done("rated")
    begun = [row.started_at for row in shop.rows("rated")]
    assert len(begun) == total
    most = max(sum(since <= at < since + 1 for at in begun) for since in begun)
    assert most <= 10 + 3
    # It is a rate, and not a crawl.
    assert begun[-1] - begun[0] < 2 * total / 10


def test_the_last_version_is_always_indexed(shop: Shop) -> None:
    killer = threading.Thread(target=lambda: shop.kill_some(6 * TIMES))
    killer.start()
    for version in range(1, 60 * TIMES + 1):
        for document in ("a", "b"):
            written = shop.folder / f"{document}.new"
            written.write_text(str(version))
            written.rename(shop.folder / document)
            shop.launch(limited_shop.index, {"document": document})
        time.sleep(random.uniform(0, 0.05))
    killer.join()
    shop.wait_done("index")
    for document in ("a", "b"):
        notes = [one["indexed"] for one in shop.web.notes("indexed") if one["document"] == document]
        assert notes[-1] == max(notes) == 60 * TIMES


def test_a_steady_burst_runs_with_its_newest_data_no_later_than_its_cap(shop: Shop) -> None:
    ids = []
    for number in range(30):
        ids.append(shop.launch(limited_shop.search, {"words": str(number)}))
        time.sleep(0.1)
    shop.wait_done("search")
    searched = [int(line["searched"]) for line in shop.web.notes("searched")]
    assert searched[-1] == 29
    assert searched == sorted(searched)
    # Three seconds of it, with a cap of 1.2: neither each by itself, nor all of them at once.
    assert 2 <= len(searched) <= 6
    assert len(set(ids)) == len(searched)
