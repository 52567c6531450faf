"""SQLite's file, removed, replaced or readable by others: nothing is kept where nobody looks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from async_hooks.errors import ConfigError, OutboxUnavailable
from async_hooks.outbox.rows import add, rows_of
from async_hooks.outbox.sql.connections import Connection
from async_hooks.outbox.sql.engines import engine_for
from async_hooks.outbox.sql.file import OpenFile
from tests.contracts.outboxes import NOW, Outbox, an_outbox, envelope


@pytest.fixture(params=[True, False], ids=["own", "app"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    with an_outbox("sqlite", tmp_path / "data", is_own=request.param) as made:
        made.added()  # Its connection is open from now on.
        yield made


def files(outbox: Outbox) -> list[Path]:
    return sorted(outbox.folder.glob("outbox.db*"))


def remove(outbox: Outbox) -> None:
    for file in files(outbox):
        file.unlink()


def as_others_see(outbox: Outbox) -> list[str]:
    """Return the ids of the rows that another process finds at the path."""
    other = Outbox("sqlite", outbox.url, outbox.folder)
    try:
        return [row["id"] for row in other.rows()]
    finally:
        other.database.engine.dispose()


# -- removed and replaced


def test_what_is_launched_after_its_file_was_removed_is_kept_in_the_new_one(
    outbox: Outbox,
) -> None:
    remove(outbox)
    added = [outbox.added().id for _ in range(3)]
    assert as_others_see(outbox) == added
    assert [each.id for each in outbox.claim()] == added


def test_a_removal_between_begin_and_commit_loses_no_launch(outbox: Outbox) -> None:
    added = envelope()
    rows, tries = rows_of([added], audience="shop", now=NOW), []

    def body(connection: Connection) -> None:
        add(connection, rows)
        tries.append(1)
        if len(tries) == 1:
            remove(outbox)

    outbox.database.transaction(body)
    assert (as_others_see(outbox), len(tries)) == ([added.id], 2)


def test_an_attempt_of_a_delivery_whose_file_was_removed_does_not_begin(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    remove(outbox)
    assert not outbox.begin(claimed)


def test_what_is_read_after_a_backup_was_restored_is_the_backups(outbox: Outbox) -> None:
    [kept] = as_others_see(outbox)
    with outbox.database.engine.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).fetchall()
    shutil.copy(outbox.folder / "outbox.db", outbox.folder / "backup")
    outbox.added()
    remove(outbox)
    (outbox.folder / "backup").rename(outbox.folder / "outbox.db")
    assert [row["id"] for row in outbox.rows()] == [kept]
    later = outbox.added()
    assert as_others_see(outbox) == [kept, later.id]


def test_a_log_that_was_removed_loses_nothing(outbox: Outbox) -> None:
    before = outbox.added()
    (outbox.folder / "outbox.db-wal").unlink()
    after = outbox.added()
    found = as_others_see(outbox)
    assert {before.id, after.id} <= set(found)
    assert len(found) == 3


def test_a_step_that_is_saved_though_its_log_was_removed_is_not_repeated(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    claimed = outbox.claimed()
    (outbox.folder / "outbox.db-wal").unlink()
    assert outbox.begin(claimed)
    assert "was removed; what it held was saved in time" in caplog.text
    outbox.added()
    (outbox.folder / "outbox.db-wal").unlink()
    assert outbox.complete(claimed)
    assert outbox.row(claimed.id)["attempts"] == 1
    tries: list[int] = []
    (outbox.folder / "outbox.db-wal").unlink()
    outbox.database.transaction(lambda connection: tries.append(1))
    assert tries == [1]


def test_a_log_that_somebody_reads_is_not_wholly_saved(outbox: Outbox) -> None:
    path = outbox.folder / "outbox.db"
    with closing(sqlite3.connect(path)) as writer, closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM async_hooks_deliveries").fetchone()
        file = OpenFile(str(path))
        writer.execute("DELETE FROM async_hooks_deliveries")
        writer.commit()
        (outbox.folder / "outbox.db-wal").unlink()
        assert file.is_replaced()
        assert not file.save(writer)
        reader.rollback()
        assert file.save(writer)


def test_a_folder_that_was_removed_is_told_until_it_is_there_again(tmp_path: Path) -> None:
    with an_outbox("sqlite", tmp_path / "data") as outbox:
        outbox.added()
        shutil.rmtree(outbox.folder)
        with pytest.raises(OutboxUnavailable, match=r"outbox\.db"):
            outbox.added()
        outbox.folder.mkdir()
        added = outbox.added()
        assert as_others_see(outbox) == [added.id]


def test_a_launch_within_the_apps_transaction_is_refused_if_its_file_was_removed(
    tmp_path: Path,
) -> None:
    with an_outbox("sqlite", tmp_path / "data", is_own=False) as outbox:
        outbox.added()
        engine = outbox.database.engine
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            remove(outbox)
            with pytest.raises(OutboxUnavailable, match="removed or replaced"):
                outbox.database.within(connection)
            connection.rollback()
        with engine.connect() as connection:  # The app's own is opened anew as well.
            connection.execute(text("CREATE TABLE orders (number INTEGER)"))
            connection.commit()
        assert as_others_see(outbox) == []
        assert (outbox.folder / "outbox.db").exists()


# -- who may read it


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("url", ["sqlite:///{path}", "sqlite:///file:{path}?uri=true"])
def test_a_file_that_others_may_read_becomes_its_owners_alone(tmp_path: Path, url: str) -> None:
    path = tmp_path / "outbox.db"
    paths = [path, tmp_path / "outbox.db-wal", tmp_path / "outbox.db-shm"]
    for each in paths:
        each.touch()
        each.chmod(0o644)
    engine = engine_for(url.format(path=path), tmp_path, synchronous="NORMAL")
    assert [mode_of(each) for each in paths] == [0o600] * 3
    with engine.connect():
        assert {mode_of(each) for each in tmp_path.iterdir()} == {0o600}
    engine.dispose()


def test_a_file_put_in_its_place_becomes_its_owners_alone(tmp_path: Path) -> None:
    with an_outbox("sqlite", tmp_path) as outbox:
        remove(outbox)
        (tmp_path / "outbox.db").touch(mode=0o644)
        outbox.added()
        assert {mode_of(each) for each in files(outbox)} == {0o600}


def test_a_file_of_somebody_elses_that_others_may_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(path: str, mode: int) -> None:
        raise PermissionError(path)

    (tmp_path / "outbox.db").touch(mode=0o644)
    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(ConfigError, match=r"others may read '.*outbox\.db'.*chmod 600"):
        engine_for(f"sqlite:///{tmp_path}/outbox.db", tmp_path, synchronous="NORMAL")


def to_a_file(path: Path) -> None:
    path.touch(mode=0o600)


def to_nothing(path: Path) -> None: ...


@pytest.mark.parametrize("lead", [to_a_file, to_nothing])
def test_a_symbolic_link_in_its_place_is_refused(
    tmp_path: Path, lead: Callable[[Path], None]
) -> None:
    target = tmp_path / "elsewhere"
    lead(target)
    before = list(tmp_path.iterdir())
    (tmp_path / "outbox.db").symlink_to(target)
    with pytest.raises(ConfigError, match=r"outbox\.db' is a symbolic link\. Name the file itself"):
        engine_for(f"sqlite:///{tmp_path}/outbox.db", tmp_path, synchronous="NORMAL")
    assert [each for each in tmp_path.iterdir() if not each.is_symlink()] == before


def test_a_symbolic_link_put_in_its_place_is_not_followed(tmp_path: Path) -> None:
    with an_outbox("sqlite", tmp_path) as outbox:
        remove(outbox)
        (tmp_path / "outbox.db").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutboxUnavailable, match="is a symbolic link"):
            outbox.added()
        assert not (tmp_path / "elsewhere").exists()


def test_a_folder_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "real")
    with an_outbox("sqlite", tmp_path / "data") as outbox:
        outbox.added()
    assert (tmp_path / "real" / "outbox.db").exists()
