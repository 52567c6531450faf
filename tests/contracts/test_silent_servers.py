"""A database server that falls silent: it answers nothing, and its connections stay open."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import make_url

from async_hooks.errors import OutboxUnavailable
from async_hooks.outbox.sql import database as databases
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import engine_for
from async_hooks.outbox.store import Store
from tests.chaos.proxies import Wire, wire
from tests.contracts.outboxes import NOW, Outbox, envelope
from tests.support.databases import KINDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("tables", [kind for kind in KINDS if kind != "sqlite"], indirect=True),
]

#: Seconds that a launch waits here, and may take in all: no connection is made in less than two.
PATIENCE, BOUND = 0.5, 2.5 + 1.0


class Far:
    """The outbox, with a wire between."""

    def __init__(self, outbox: Outbox, between: Wire) -> None:
        url = make_url(outbox.url).set(port=between.port)
        through = url.render_as_string(hide_password=False)
        engine = engine_for(through, outbox.folder, synchronous="NORMAL")
        self.database = Database(lambda: engine, patience=PATIENCE, is_own=outbox.is_own)
        self.store = Store(self.database, ["shop"], now=lambda: NOW)

    def add(self) -> None:
        self.store.add([envelope()])


@pytest.fixture
def between(outbox: Outbox) -> Iterator[Wire]:
    port = make_url(outbox.url).port
    assert port is not None
    with wire(port) as carried:
        yield carried


@pytest.fixture
def far(outbox: Outbox, between: Wire) -> Iterator[Far]:
    made = Far(outbox, between)
    yield made
    made.database.engine.dispose()


@contextmanager
def soon(bound: float = BOUND) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < bound


def add_with_a_key(far: Far) -> None:
    far.store.add([envelope(unique_key="key")])


def look_for_a_key(far: Far) -> None:
    far.store.unfinished("key")


@pytest.mark.parametrize("launch", [Far.add, add_with_a_key, look_for_a_key])
def test_a_launch_gives_up_a_server_that_falls_silent(
    outbox: Outbox, far: Far, between: Wire, launch: Callable[[Far], None]
) -> None:
    far.add()
    with (
        between.stalled(),
        soon(),
        pytest.raises(OutboxUnavailable, match=r"no answer within 0\.5"),
    ):
        launch(far)
    far.add()  # On a connection of its own.
    assert len(outbox.rows()) >= 2


def test_a_launch_gives_up_a_server_that_was_silent_before(far: Far, between: Wire) -> None:
    with between.stalled(), soon(), pytest.raises(OutboxUnavailable):
        far.add()
    far.add()


def test_launches_at_once_give_up_together(far: Far, between: Wire) -> None:
    far.add()

    def launch(_: int) -> str:
        with pytest.raises(OutboxUnavailable) as caught:
            far.add()
        return str(caught.value)

    with between.stalled(), soon(), ThreadPoolExecutor(8) as threads:
        list(threads.map(launch, range(8)))
    far.add()


def test_what_nobody_waits_for_gives_up_later(
    far: Far, between: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "SILENCE", 1.0)
    far.add()
    with between.stalled(), soon(), pytest.raises(OutboxUnavailable, match="no answer within 1 s"):
        far.store.make_due()
    assert far.store.make_due() == 0


def test_a_slow_answer_to_what_nobody_waits_for_counts(outbox: Outbox) -> None:
    sleep = {"postgresql": "SELECT pg_sleep(1.5)", "mariadb": "SELECT sleep(1.5)"}
    database = outbox.another(patience=PATIENCE)
    database.read(lambda connection: connection.say(sleep[outbox.kind]))
    database.engine.dispose()


def test_a_frozen_process_of_the_server_is_given_up(outbox: Outbox) -> None:
    if outbox.kind != "postgresql" or os.geteuid():
        pytest.skip("Only PostgreSQL has a process for each connection, which only root freezes.")
    database = outbox.another(patience=PATIENCE)
    frozen: int = database.read(lambda connection: connection.driver.info.backend_pid)
    assert frozen > 0
    os.kill(frozen, signal.SIGSTOP)
    try:
        with soon(), pytest.raises(OutboxUnavailable, match="no answer"):
            Store(database, ["shop"]).add([envelope()])
        Store(database, ["shop"]).add([envelope()])
    finally:
        os.kill(frozen, signal.SIGCONT)
    database.engine.dispose()
