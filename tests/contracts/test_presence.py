"""What a machine remembers of SQLite's tables: that they were there, and whether they vanished."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import StaticPool, create_engine, text

from async_hooks.errors import OutboxUnavailable
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.presence import Presence
from async_hooks.outbox.store import Store
from tests.contracts.outboxes import Outbox, an_outbox, envelope


@pytest.fixture(params=[True, False], ids=["own", "app"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    with an_outbox("sqlite", tmp_path / "data", is_own=request.param) as made:
        made.added()  # Its connection is open from now on.
        yield made


def remove(outbox: Outbox) -> None:
    for file in outbox.folder.glob("outbox.db*"):
        file.unlink()


def test_tables_that_vanished_are_told_until_they_are_asked_for(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    assert outbox.database.losses() == []
    remove(outbox)
    outbox.added()
    [loss] = outbox.database.losses()
    assert "had vanished, and were made anew" in loss
    assert "flask async-hooks init-db" in loss
    assert loss in caplog.text
    assert outbox.another().losses() == [loss]  # Another process, or this one after a restart.
    assert not outbox.another().create()
    assert outbox.database.losses() == []


def test_tables_that_vanished_while_nobody_had_the_file_open_are_made_anew(outbox: Outbox) -> None:
    outbox.database.engine.dispose()
    remove(outbox)
    added = outbox.added()
    assert [row["id"] for row in outbox.rows()] == [added.id]
    [loss] = outbox.database.losses()
    assert "had vanished" in loss


def test_a_table_that_can_not_be_made_anew_is_told(outbox: Outbox) -> None:
    with outbox.database.engine.begin() as connection:
        connection.execute(text("DROP TABLE async_hooks_deliveries"))
    with pytest.raises(OutboxUnavailable, match="no such table"):
        outbox.added()


def test_tables_that_were_dropped_are_missing_though_sqlite_makes_its_own(outbox: Outbox) -> None:
    assert outbox.database.check()
    with outbox.database.engine.begin() as connection:
        connection.execute(text("DROP TABLE async_hooks_schema"))
        connection.execute(text("DROP TABLE async_hooks_deliveries"))
    with pytest.raises(OutboxUnavailable, match=r"are missing in .* init-db"):
        outbox.another().check()


def test_tables_that_nobody_made_yet_are_no_loss(tmp_path: Path) -> None:
    made = Outbox("sqlite", f"sqlite:///{tmp_path}/outbox.db", tmp_path)
    assert not made.database.check()
    made.added()
    assert made.database.losses() == []
    made.database.engine.dispose()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Outbox]:
    """An outbox in an app's own database, which nobody has used yet."""
    made = Outbox("sqlite", f"sqlite:///{tmp_path}/outbox.db", tmp_path, is_own=False)
    engine = create_engine(made.url)  # As it is: what begins, and is undone, is the app's matter.
    made.database = Database(lambda: engine)
    made.store = Store(made.database, ["shop"])
    yield made
    engine.dispose()


def test_tables_that_the_app_made_and_rolled_back_are_no_loss(
    fresh: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh.database.engine.connect() as connection:
        connection.execute(text("CREATE TABLE orders (number INTEGER)"))
        fresh.store.add_within(connection, [envelope()])
        connection.rollback()
    fresh.added()
    assert fresh.database.losses() == []
    assert caplog.text == ""


@pytest.mark.parametrize("is_committed", [True, False])
def test_tables_that_the_app_made_anew_are_told_once_it_has_committed(
    outbox: Outbox, is_committed: bool
) -> None:
    remove(outbox)
    outbox.database.engine.dispose()
    another = outbox.another()
    with another.engine.connect() as connection:
        Store(another, ["shop"]).add_within(connection, [envelope()])
        assert another.losses() == []
        if is_committed:
            connection.commit()
            another.note_prepared()
    assert len(another.losses()) == is_committed
    another.engine.dispose()


def test_who_makes_the_tables_first_finds_no_loss_though_another_uses_them_at_once(
    fresh: Outbox,
) -> None:
    with fresh.database.engine.connect() as connection:
        fresh.store.add_within(connection, [envelope()])
        connection.commit()
    other = fresh.another()
    Store(other, ["shop"]).add([envelope()])
    fresh.database.note_prepared()
    assert fresh.database.losses() == []
    other.engine.dispose()


def test_nothing_is_remembered_of_a_database_in_memory() -> None:
    for _ in range(2):
        engine = create_engine("sqlite://", poolclass=StaticPool)
        database = Database(lambda engine=engine: engine)  # type: ignore[misc]
        with engine.connect() as connection:
            Store(database, ["shop"]).add_within(connection, [envelope()])
            connection.commit()
            database.note_prepared()
            assert not Presence(connection).is_known
        assert database.losses() == []
        engine.dispose()
