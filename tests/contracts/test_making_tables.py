"""Making and adopting tables on a server: it may take long, and a lost connection costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from async_hooks.outbox import audiences, claiming
from async_hooks.outbox.sql import database as databases
from async_hooks.outbox.sql.connections import Connection
from tests.contracts.outboxes import NOW, Outbox, an_empty_database
from tests.contracts.test_database import SERVERS, kill_all

#: Longer than a silent server is waited for here, by some of its looks.
SILENCE, LONGER = 0.5, {"postgresql": "SELECT pg_sleep(1.5)", "mariadb": "SELECT sleep(1.5)"}


@pytest.fixture(params=SERVERS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """A database without our tables."""
    with an_empty_database(request.param, tmp_path) as made:
        yield made


def before_the_pauses_are_made(outbox: Outbox, step: Callable[[Any], object]) -> None:
    """Let ``step`` be taken once, with the cursor, in the middle of the making."""
    taken: list[object] = []

    def listen(_: object, cursor: Any, statement: str, *__: object) -> None:
        if "CREATE TABLE async_hooks_pauses" in statement and not taken:
            taken.append(True)
            step(cursor)

    event.listen(outbox.database.engine, "before_cursor_execute", listen)


def test_a_connection_that_ends_while_tables_are_made_is_made_anew(empty: Outbox) -> None:
    before_the_pauses_are_made(empty, lambda cursor: kill_all(empty))
    assert empty.database.create()
    assert empty.database.check()
    empty.added()


@pytest.mark.slow
def test_tables_may_be_made_for_longer_than_silence_is_waited_for(
    empty: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_the_pauses_are_made(empty, lambda cursor: cursor.execute(LONGER[empty.kind]))
    monkeypatch.setattr(databases, "SILENCE", SILENCE)
    ended: list[object] = []
    event.listen(empty.database.engine, "invalidate", lambda *_: ended.append(True))
    assert empty.database.create()
    assert ended == []


@pytest.mark.slow
def test_rows_may_be_adopted_for_longer_than_silence_is_waited_for(
    empty: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.database.create()
    empty.added()
    limits: list[str] = []

    def paused(connection: Connection, of: Collection[str]) -> list[str]:
        connection.say(LONGER[empty.kind])
        connection.cursor.fetchall()
        if empty.kind == "postgresql":
            connection.say("SHOW statement_timeout")
            limits.append(connection.cursor.fetchone()[0])
        return claiming.paused(connection, of)

    monkeypatch.setattr(audiences, "paused", paused)
    monkeypatch.setattr(databases, "SILENCE", SILENCE)
    assert audiences.adopt(empty.database, "shop", "store", NOW) == 1
    assert limits == (["10min"] if empty.kind == "postgresql" else [])
