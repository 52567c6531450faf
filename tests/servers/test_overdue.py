"""A run that takes longer than its timeout: reported once, left alone, and never run twice.

``OVERDUE_SECONDS`` is how long it takes, with a timeout and a lease of 1. Without it, that is 2,
and not every server is tried with every store.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.servers import ROOT, answers, free_port
from tests.support.site import Site, gunicorn, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

APP = "tests.servers.slow_shop:create_app()"
FLASK = [sys.executable, "-m", "flask", "--app", "tests.servers.slow_shop:create_app"]
SECONDS = float(os.environ.get("OVERDUE_SECONDS", "2"))
IS_LONG = "OVERDUE_SECONDS" in os.environ

SERVERS = {
    "gthread": ("-w", "2", "-k", "gthread", "--threads", "8"),
    "sync": ("-w", "3", "-k", "sync", "--timeout", "600"),
    "gevent": ("-w", "2", "-k", "gevent"),
}
STORES = {
    "memory": {},
    "outbox": {"SITE_ASYNC_HOOKS_OUTBOX": "sqlite:///outbox.db"},
    "app": {"SITE_ASYNC_HOOKS_OUTBOX": "app"},
}


class Slow:
    """A site with a timeout of a second, and what is known of it from outside."""

    def __init__(self, folder: Path, stack: ExitStack, store: str) -> None:
        self.folder = folder
        self.stack = stack
        self.environ = {
            "FOLDER": str(folder),
            "SITE_ASYNC_HOOKS_TIMEOUT": "1",
            "SITE_ASYNC_HOOKS_LEASE": "1",
            "PYTHONUNBUFFERED": "1",
            **STORES[store],
        }
        self.hold = folder / "hold"
        self.hold.touch()
        self.url = ""

    def serve(self, *options: str, **environ: str) -> Site:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = gunicorn(*options, "-b", f"127.0.0.1:{port}", app=APP)
        is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
        every = {**self.environ, **environ}
        return self.stack.enter_context(running(self.folder, command, is_up, **every))

    def work(self, *options: str) -> Site:
        command = [*FLASK, "async-hooks", "worker", *options]
        return self.stack.enter_context(Site(self.folder, command, self.environ))

    def export(self, number: int) -> str:
        answer = requests.get(f"{self.url}/export/{number}", timeout=30)
        answer.raise_for_status()
        return answer.text

    def ask(self, *command: str) -> str:
        """Return what a command prints."""
        ledger = {"LEDGER": str(self.folder / "ledger"), "HOLD": str(self.hold)}
        environ = {**os.environ, **ledger, **self.environ}
        line = [*FLASK, "async-hooks", *command]
        done = subprocess.run(
            line, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def state(self, delivery_id: str) -> str:
        found = json.loads(self.ask("deliveries", "--json"))
        return str(next(one["state"] for one in found if one["id"] == delivery_id))


Start = Callable[[str], Slow]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda store: Slow(tmp_path, stack, store)


def facts_of(site: Site) -> dict[str, int]:
    keys = ("begun", "mail", "overdue", "succeeded", "failed")
    return {key: len(site.notes(key)) for key in keys}


ONCE = {"begun": 1, "mail": 1, "overdue": 1, "succeeded": 1, "failed": 0}


@pytest.mark.parametrize(
    ("server", "store", "transport"),
    [
        *(("gthread", store, way) for store in STORES for way in ("loopback", "in_process")),
        *((server, "outbox", "loopback") for server in ("sync", "gevent")),
        *(
            (server, store, way)
            for server in ("sync", "gevent")
            for store in STORES
            for way in ("loopback", "in_process")
            if IS_LONG and (store, way) != ("outbox", "loopback")
        ),
    ],
)
def test_a_slow_run_is_reported_once_and_never_run_twice(
    start: Start, server: str, store: str, transport: str
) -> None:
    slow = start(store)
    site = slow.serve(*SERVERS[server], SITE_ASYNC_HOOKS_TRANSPORT=transport)
    slow.export(1)
    site.wait_for("overdue", 1)
    time.sleep(SECONDS)
    assert facts_of(site) == {**ONCE, "mail": 0, "succeeded": 0}
    slow.hold.unlink()
    site.wait_for("succeeded", 1)
    time.sleep(1.5)
    assert facts_of(site) == ONCE
    assert site.log.count("is overdue") == 1
    if store == "app":
        assert requests.get(f"{slow.url}/mails", timeout=30).text == "1"
    if store != "memory":
        assert "1 completed" in slow.ask("status")


@pytest.mark.parametrize("store", ["outbox", "app"])
def test_a_slow_run_of_a_worker_is_run_once_and_another_slot_is_lent(
    start: Start, store: str
) -> None:
    slow = start(store)
    site = slow.serve(*SERVERS["gthread"], SITE_ASYNC_HOOKS_RELAY="false")
    slow.work()
    slow.export(1)
    site.wait_for("overdue", 1)
    slow.export(100)
    wait_until(lambda: site.notes("mail"), "another's run")
    time.sleep(SECONDS)
    slow.hold.unlink()
    site.wait_for("succeeded", 2)
    time.sleep(1.5)
    assert facts_of(site) == {"begun": 2, "mail": 2, "overdue": 1, "succeeded": 2, "failed": 0}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("transport", ["loopback", "in_process"])
def test_hung_runs_keep_a_slot_each_and_not_those_of_the_others(
    start: Start, store: str, transport: str
) -> None:
    slow = start(store)
    site = slow.serve(
        *("-w", "1", "-k", "gthread", "--threads", "12"), SITE_ASYNC_HOOKS_TRANSPORT=transport
    )
    for number in (1, 2):
        slow.export(number)
    site.wait_for("overdue", 2)
    for number in range(100, 120):
        slow.export(number)
    site.wait_for("mail", 20)
    slow.hold.unlink()
    site.wait_for("mail", 22)
    assert len(site.notes("begun")) == 22


def test_more_hung_runs_than_slots_are_named(start: Start) -> None:
    slow = start("outbox")
    site = slow.serve("-w", "1", "-k", "gthread", "--threads", "12")
    hung = [slow.export(number) for number in (1, 2)]
    site.wait_for("overdue", 2)
    wait_until(lambda: all(one in slow.ask("health") for one in hung), "what health names")
    assert slow.ask("health").startswith("OK")
    assert "for longer than its timeout" in slow.ask("why", hung[0])
    assert all(one in slow.ask("status").partition("overdue")[2] for one in hung)
    hung += [slow.export(number) for number in (3, 4)]
    site.wait_for("overdue", 4)
    wait_until(lambda: "keep all threads" in slow.ask("health"), "the problem")
    assert all(one in slow.ask("health") for one in hung)
    slow.hold.unlink()
    site.wait_for("mail", 4)
    wait_until(lambda: slow.ask("health").startswith("OK"), "the end of the problem")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_freezes_in_a_slow_run_makes_one_more_attempt(
    start: Start, how: signal.Signals
) -> None:
    slow = start("outbox")
    site = slow.serve(*SERVERS["gthread"])
    launched = slow.export(1)
    site.wait_for("overdue", 1)
    [first] = site.notes("begun")
    os.kill(first["pid"], how)
    for _ in range(10):  # The others relay from their first visitor on.
        with suppress(requests.RequestException):
            requests.get(slow.url, timeout=0.5)
    [_, second] = site.wait_for("begun", 2)
    assert (second["attempt"], second["pid"] != first["pid"]) == (2, True)
    slow.hold.unlink()
    site.wait_for("mail", 1)
    if how is signal.SIGSTOP:
        os.kill(first["pid"], signal.SIGCONT)
        time.sleep(3)
    assert slow.state(launched) == "completed"
    assert len(site.notes("begun")) == 2


@pytest.mark.parametrize("dies", [False, True])
def test_a_web_process_that_does_not_relay_shows_that_its_slow_run_lives(
    start: Start, dies: bool
) -> None:
    slow = start("outbox")
    slow.serve("-w", "1", "-k", "gthread", "--threads", "4", SITE_ASYNC_HOOKS_RELAY="false")
    there = slow.url
    site = slow.serve("-w", "1", "-k", "gthread", "--threads", "4", SITE_ASYNC_HOOKS_URL=there)
    launched = slow.export(1)
    site.wait_for("overdue", 1)
    time.sleep(max(SECONDS, 4))  # Longer than twice the timeout, and three heartbeats.
    [first] = site.notes("begun")
    assert f"runs only what others send  runs {launched}" in slow.ask("status")
    assert "relays alive: 1" in slow.ask("health")
    if dies:
        os.kill(first["pid"], signal.SIGKILL)
        site.wait_for("begun", 2)
    slow.hold.unlink()
    site.wait_for("succeeded", 1)
    time.sleep(1.5)
    assert len(site.notes("begun")) == 1 + dies
    assert len(site.notes("mail")) == 1
    [found] = json.loads(slow.ask("deliveries", "--json"))
    assert (found["state"], found["crashes"]) == ("completed", int(dies))


def test_cancelling_a_hung_run_frees_its_key_and_shows_that_its_thread_remains(
    start: Start,
) -> None:
    slow = start("outbox")
    site = slow.serve(*SERVERS["gthread"])
    launched = slow.export(1)
    site.wait_for("overdue", 1)
    assert slow.export(1) == launched
    assert "cancelled" in slow.ask("cancel", launched)
    assert slow.export(1) != launched
    assert f"cancelled, but runs {launched}" in slow.ask("status")
    slow.hold.unlink()
    site.wait_for("mail", 2)
    wait_until(lambda: "cancelled, but runs" not in slow.ask("status"), "the thread's end")
    assert slow.state(launched) == "cancelled"


def test_a_worker_kills_a_run_only_if_told_to_and_counts_a_crash(start: Start) -> None:
    slow = start("outbox")
    site = slow.serve(*SERVERS["gthread"], SITE_ASYNC_HOOKS_RELAY="false")
    slow.work("--kill-overdue", "1")
    launched = slow.export(1)
    begun: list[dict[str, Any]] = site.wait_for("begun", 2)
    assert begun[0]["pid"] != begun[1]["pid"]
    slow.hold.unlink()
    site.wait_for("succeeded", 1)
    found = json.loads(slow.ask("deliveries", "--json"))
    assert [(one["id"], one["crashes"]) for one in found] == [(launched, 1)]


def test_a_hung_run_keeps_a_worker_from_its_restart_and_nobody_waiting(start: Start) -> None:
    slow = start("outbox")
    site = slow.serve(*SERVERS["gthread"], SITE_ASYNC_HOOKS_RELAY="false")
    slow.work("--max-deliveries", "2")
    slow.export(1)
    site.wait_for("overdue", 1)
    for number in range(100, 106):
        slow.export(number)
    site.wait_for("mail", 6)
    slow.hold.unlink()
    site.wait_for("mail", 7)
    slow.export(200)
    site.wait_for("mail", 8)
    pids = [line["pid"] for line in site.notes("mail")]
    assert len(set(pids[:-1])) == 1
    assert pids[-1] != pids[0]
