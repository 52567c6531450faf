"""A long run is killed, drained, paused and cancelled, and goes on where it was.

``KILLS`` is how often the process that runs it is killed; without it, 20 times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from async_hooks import Delivery
from async_hooks.state import state_of
from tests.servers import stepping_shop
from tests.support.databases import fresh_database
from tests.support.servers import answers, free_port
from tests.support.services import require_module
from tests.support.site import Site, gunicorn, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "20"))
APP = "tests.servers.stepping_shop:create_app()"
WORKER = [sys.executable, "-m", "flask", "--app", "tests.servers.stepping_shop:create_app"]


class Long:
    """Servers and workers of the shop, and the test's own look into their outbox."""

    def __init__(self, folder: Path, stack: ExitStack, kind: str, outbox: str, **config: str):
        self.folder = folder
        self.stack = stack
        url = stack.enter_context(fresh_database(kind, folder))
        outbox = "app" if outbox == "app" else url
        config = {"ASYNC_HOOKS_OUTBOX": outbox, "ASYNC_HOOKS_LEASE": "3", **config}
        config["SQLALCHEMY_DATABASE_URI"] = url
        self.environ = {f"SITE_{key}": value for key, value in config.items()}
        self.environ |= {"FOLDER": str(folder), "PYTHONUNBUFFERED": "1"}
        own = {key: json.loads(text) if text.isdigit() else text for key, text in config.items()}
        own |= {"ASYNC_HOOKS_RELAY": False}
        self.app: Flask = stepping_shop.make_app(str(folder), **own)
        self.url = ""
        with self.app.app_context():
            stepping_shop.db.create_all()
            stepping_shop.hooks.outbox.create()
            stack.callback(stepping_shop.db.engine.dispose)
        store: Any = state_of(self.app).store
        stack.callback(lambda: store.database.engine.dispose())

    def serve(self, *options: str, **environ: str) -> Site:
        threads = ("-k", "gthread", "--threads", "8")
        return self._listen(gunicorn(*options, *threads, app=APP), "-b", **environ)

    def _listen(self, command: list[str], bind: str, **environ: str) -> Site:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        where = f"127.0.0.1:{port}" if bind == "-b" else str(port)
        is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
        every = {**self.environ, **environ}
        return self.stack.enter_context(
            running(self.folder, [*command, bind, where], is_up, **every)
        )

    def begin(self, how: str) -> Site:
        """Start one process that delivers."""
        if how == "worker":
            return self.work()
        if how == "web":
            site = self.serve("-w", "1", "--graceful-timeout", "60")
        else:
            require_module("uvicorn")
            command = [sys.executable, "-m", "uvicorn", "--interface", "wsgi", "--factory"]
            site = self._listen([*command, APP.removesuffix("()")], "--port")
        self.visit()
        return site

    def work(self, *options: str) -> Site:
        command = [*WORKER, "async-hooks", "worker", *options]
        return self.stack.enter_context(Site(self.folder, command, self.environ))

    def visit(self) -> None:
        """Let each process of the server begin to relay."""
        for _ in range(12):
            requests.get(self.url, timeout=30)

    def launch(self, steps: int, seconds: float, **data: Any) -> str:
        with self.app.app_context():
            data |= {"steps": steps, "seconds": seconds}
            launched = stepping_shop.Steps.dispatch(data)
            stepping_shop.db.session.commit()
            return launched

    def ask(self, question: Callable[[Any], Any]) -> Any:
        with self.app.app_context():
            return question(stepping_shop.hooks.outbox)

    def delivery(self, delivery_id: str) -> Delivery:
        found: Delivery = self.ask(lambda outbox: outbox.get(delivery_id))
        return found

    def reached(self, delivery_id: str) -> int:
        return self.delivery(delivery_id).cursor or 0

    def effects(self) -> Counter[int]:
        with self.app.app_context():
            return Counter(
                stepping_shop.db.session.scalars(stepping_shop.db.select(stepping_shop.Effect.step))
            )

    def echoes(self) -> Counter[int]:
        found = self.ask(lambda outbox: outbox.find(task="echo", limit=None))
        return Counter(each.data["step"] for each in found)


Start = Callable[..., Long]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda kind, outbox="own", **config: Long(tmp_path, stack, kind, outbox, **config)


def once(steps: int) -> Counter[int]:
    return Counter(range(1, steps + 1))


@pytest.mark.parametrize(
    ("kind", "outbox", "how"),
    [
        ("sqlite", "app", "web"),
        ("postgresql", "app", "worker"),
        ("mariadb", "app", "web"),
        ("sqlite", "own", "web"),
    ],
)
def test_a_run_that_is_killed_all_the_time_takes_every_step_once(
    start: Start, kind: str, outbox: str, how: str
) -> None:
    steps = max(200, 10 * KILLS)
    long = start(kind, outbox)
    if how == "web":
        site = long.serve("-w", "3")
        long.visit()
    else:
        site = long.work()
    launched = long.launch(steps, 0.02)
    chance, kills = random.Random(1), 0

    def has_moved(before: int) -> bool:
        return long.reached(launched) > before

    for _ in range(KILLS):
        before = long.reached(launched)
        wait_until(partial(has_moved, before), site.log)
        time.sleep(chance.uniform(0, 0.15))
        if long.delivery(launched).is_finished:
            break
        os.kill(site.notes("step")[-1]["pid"], signal.SIGKILL)
        kills += 1
        if how == "web":
            long.visit()
    wait_until(lambda: long.delivery(launched).is_finished, site.log, bound=120)
    delivery = long.delivery(launched)
    assert (delivery.state, delivery.cursor) == ("completed", steps)
    assert kills >= KILLS * 3 // 4
    assert delivery.attempts > kills // 2
    assert long.echoes() == once(steps)
    if outbox == "app":
        assert long.effects() == once(steps)
    else:  # No step is missing; the one in hand is taken again.
        taken = Counter(line["step"] for line in site.notes("step"))
        assert set(taken) == set(range(1, steps + 1))
        assert taken.total() <= steps + kills


@pytest.mark.parametrize("how", ["web", "worker", "uvicorn"])
def test_a_process_that_drains_hands_its_long_run_on(start: Start, how: str) -> None:
    long = start("sqlite", "app")
    site = long.begin(how)
    launched = long.launch(60, 0.1)
    wait_until(lambda: long.reached(launched) > 3, site.log)
    site.process.send_signal(signal.SIGTERM)
    site.process.wait(20)
    delivery = long.delivery(launched)
    assert (delivery.state, delivery.attempts, delivery.crashes) == ("available", 0, 0)
    assert 3 < (delivery.cursor or 0) < 60
    site = long.begin(how)
    wait_until(lambda: long.delivery(launched).is_finished, site.log)
    assert (long.effects(), long.echoes()) == (once(60), once(60))
    delivery = long.delivery(launched)
    assert (delivery.state, delivery.attempts, delivery.crashes) == ("completed", 1, 0)
    assert [line["attempt"] for line in site.notes("begun")] == [1, 1]
    steps = [line["step"] for line in site.notes("step")]
    assert steps == [*range(1, 61)]


def test_a_reload_moves_a_long_run_to_the_new_process(start: Start) -> None:
    long = start("sqlite", "app")
    site = long.serve("-w", "2", "--graceful-timeout", "60")
    long.visit()
    launched = long.launch(60, 0.1)
    wait_until(lambda: long.reached(launched) > 3, site.log)
    [first] = {line["pid"] for line in site.notes("step")}
    site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not Path(f"/proc/{first}").exists(), site.log)
    assert not long.delivery(launched).is_finished
    long.visit()
    wait_until(lambda: long.delivery(launched).is_finished, site.log)
    assert (long.effects(), long.echoes()) == (once(60), once(60))
    assert long.delivery(launched).attempts == 1


def test_cancel_reaches_a_run_in_another_process(start: Start) -> None:
    long = start("sqlite", "app")
    site = long.work()
    launched = long.launch(1000, 0.05)
    wait_until(lambda: long.reached(launched) > 3, site.log)
    assert long.ask(lambda outbox: outbox.cancel(launched))
    reached = long.reached(launched)
    number = long.launch(1, 0)  # The worker has one slot; it is free again.
    wait_until(lambda: long.delivery(number).is_finished, site.log)
    assert long.effects() == once(reached) + once(1)
    assert (long.reached(launched), long.delivery(launched).state) == (reached, "cancelled")
    assert not site.notes("failed")


@pytest.mark.parametrize("how", ["checkpoint", "progress"])
@pytest.mark.parametrize("way", ["loopback", "elsewhere", "in_process", "worker"])
def test_a_run_that_shows_that_it_goes_on_is_never_overdue(
    start: Start, way: str, how: str
) -> None:
    """It takes six times its timeout, and three leases."""
    config = {"ASYNC_HOOKS_TIMEOUT": "1", "ASYNC_HOOKS_LEASE": "2"}
    if way == "in_process":
        config["ASYNC_HOOKS_TRANSPORT"] = "in_process"
    long = start("sqlite", **config)
    if way == "worker":
        site = long.work()
    elif way == "elsewhere":
        long.serve("-w", "1", SITE_ASYNC_HOOKS_RELAY="false")
        site = long.serve("-w", "1", SITE_ASYNC_HOOKS_URL=long.url)
    else:
        site = long.serve("-w", "2")
    if way != "worker":
        long.visit()
    launched = long.launch(30, 0.2, progress=how == "progress")
    site.wait_for("begun", 1)
    while not (delivery := long.delivery(launched)).is_finished:
        health = long.ask(lambda outbox: outbox.health(patience=30))
        assert (health.overdue, health.ok) == ([], True), health
        assert "longer" not in long.ask(lambda outbox: outbox.why(launched))
        time.sleep(0.1)
    assert (delivery.state, delivery.attempts) == ("completed", 1)
    assert len(site.notes("begun")) == 1
    assert site.notes("overdue") + site.notes("failed") == []
    assert "overdue" not in site.log


@pytest.mark.parametrize("how", ["web", "worker", "only attends"])
def test_progress_is_seen_by_other_processes_within_a_second(start: Start, how: str) -> None:
    long = start("sqlite")
    if how == "only attends":
        long.serve("-w", "1", SITE_ASYNC_HOOKS_RELAY="false")
        site = long.serve("-w", "1", SITE_ASYNC_HOOKS_URL=long.url)
        long.visit()
    elif how == "web":
        site = long.serve("-w", "1")
        long.visit()
    else:
        site = long.work()
    launched = long.launch(100, 0.05, progress=True)
    lags = []
    while not (delivery := long.delivery(launched)).is_finished:
        now = time.time()
        said = {line["step"]: line["at"] for line in site.notes("step")}
        done = 0 if delivery.progress is None else delivery.progress["done"]
        # For how long the next one has been there to be seen.
        lags.append(now - said.get(done + 1, now))
        time.sleep(0.05)
    assert len({round(lag, 1) for lag in lags}) > 1
    print("slowest:", max(lags))
    assert max(lags) < 2  # One, and as much again for a machine that is busy.
