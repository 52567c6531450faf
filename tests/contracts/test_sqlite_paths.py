"""SQLite's file by a relative name, or by a link to it: the same one, wherever the process goes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.store import Store
from tests.contracts.outboxes import Outbox, envelope


def count_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("SELECT count(*) FROM async_hooks_deliveries").fetchone()[0]
        return found


@pytest.mark.parametrize("url", ["sqlite:///shop.db", "sqlite:///file:shop.db?uri=true"])
def test_an_apps_relative_name_means_the_same_file_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    engine = create_engine(url)
    store = Store(Database(lambda: engine), ["shop"])
    store.add([envelope()])
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.add([envelope()])
    engine.dispose()
    assert (count_rows(tmp_path / "shop.db"), list(Path.cwd().iterdir())) == (2, [])


@pytest.mark.parametrize("url", ["sqlite:///o b.db", "sqlite:///file:o%20b.db?uri=true"])
def test_our_own_relative_name_is_of_the_apps_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    outbox = Outbox("sqlite", url, tmp_path / "data")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        outbox.added()
        outbox.database.engine.dispose()
    assert count_rows(tmp_path / "data" / "o b.db") == 2


def test_a_link_to_an_apps_file_is_followed_where_it_leads(tmp_path: Path) -> None:
    for name in ("real", "other"):
        (tmp_path / name).mkdir()
    link = tmp_path / "shop.db"
    link.symlink_to(tmp_path / "real" / "shop.db")
    engine = create_engine(f"sqlite:///{link}")
    store = Store(Database(lambda: engine), ["shop"])
    store.add([envelope()])
    (tmp_path / "real" / "shop.db-wal").unlink()
    store.add([envelope()])
    assert count_rows(tmp_path / "real" / "shop.db") == 2
    link.unlink()
    link.symlink_to(tmp_path / "other" / "shop.db")
    store.add([envelope()])
    engine.dispose()
    assert count_rows(tmp_path / "other" / "shop.db") == 1
