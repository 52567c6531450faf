"""One clock for all hosts: the database's, whatever a host's own says."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from async_hooks.delivery import Claim
from async_hooks.envelope import Envelope
from async_hooks.outbox.sql import clock
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import engine_for
from async_hooks.outbox.store import Store
from tests.support.databases import KINDS, fresh_database


class Host:
    """The ``time`` module of a host whose clock is ``ahead`` of this one's."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self.ahead


def database_of(url: str, folder: Path) -> Database:
    made = Database(lambda: engine_for(url, folder, synchronous="NORMAL"), is_own=True)
    made.create()
    return made


@pytest.mark.parametrize("ahead", [20.0, -3600.0])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sqlite"])
def test_what_a_host_with_a_wrong_clock_launches_is_due_at_once_for_the_others(
    kind: str, ahead: float, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh_database(kind, tmp_path) as url:
        ours, theirs = database_of(url, tmp_path), database_of(url, tmp_path)
        true = ours.now()
        with monkeypatch.context() as patched:
            patched.setattr(clock, "time", Host(ahead))
            wrong = theirs.now()
            Store(theirs, ["shop"], now=theirs.now).add([Envelope("one", "task", "{}")])
        assert abs(true - time.time()) < 1
        assert abs(wrong - true) < 1
        assert theirs.clock.skew == pytest.approx(ahead, abs=1)
        assert ours.clock.skew is None
        assert caplog.text.count("off the outbox's database") == 1
        store = Store(ours, ["shop"], now=ours.now)
        claimed, _ = store.claim(Claim("process", "lease"), {("task", "")}, 10)
        assert [each.id for each in claimed] == ["one"]
        for each in (ours, theirs):
            each.engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_whose_clock_is_set_in_between_goes_on_by_the_databases(
    kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    with fresh_database(kind, tmp_path) as url:
        database = database_of(url, tmp_path)
        before = database.now()
        monkeypatch.setattr(clock, "time", Host(3600.0))
        moved = database.now() - before
        assert (moved < 1) is (kind != "sqlite")  # SQLite is one machine, with one clock.
        database.engine.dispose()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sqlite"])
def test_threads_that_ask_first_at_once_are_all_told_the_same(
    kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    with fresh_database(kind, tmp_path) as url:
        database = database_of(url, tmp_path)
        monkeypatch.setattr(clock, "time", Host(20.0))
        told: list[float] = []
        threads = [threading.Thread(target=lambda: told.append(database.now())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(told) - time.time() < 1
        database.engine.dispose()


def test_an_apps_pool_is_asked_for_no_second_connection(tmp_path: Path) -> None:
    with fresh_database("postgresql", tmp_path) as url:
        database_of(url, tmp_path).engine.dispose()
        engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=20)
        database = Database(lambda: engine)
        store = Store(database, ["shop"], now=database.now)
        began = time.monotonic()
        with engine.connect() as connection:
            store.add_within(connection, [Envelope("one", "task", "{}")])
            connection.commit()
        assert time.monotonic() - began < 5
        assert database.clock.skew is None
        engine.dispose()


def test_a_database_that_does_not_answer_leaves_a_host_its_own_clock(tmp_path: Path) -> None:
    url = "postgresql://postgres@127.0.0.1:1/nothing"
    database = Database(
        lambda: engine_for(url, tmp_path, synchronous="NORMAL"), is_own=True, patience=0.1
    )
    assert abs(database.now() - time.time()) < 1
    began = time.monotonic()
    database.now()
    assert time.monotonic() - began < 0.05  # It is not asked again for a while.
    database.engine.dispose()
