"""Flask-Migrate: the outbox's tables in the app's own database are none of its business."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import require_module

pytestmark = pytest.mark.slow

APP = """
import os

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from async_hooks import AsyncHooks

db, migrate = SQLAlchemy(), Migrate()
hooks = AsyncHooks(db=db)


class Order(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    if "NOTE" in os.environ:
        note = db.Column(db.String(20))


@hooks.job
def pack():
    pass


def own_include_name(name, type_, parent_names):
    return name != "legacy"


def create_app():
    app = Flask("shop", instance_path=os.environ["FOLDER"])
    app.config.update(
        SECRET_KEY="a key of the shop's, thirty-two bytes or more",
        SQLALCHEMY_DATABASE_URI="sqlite:///shop.db",
        ASYNC_HOOKS_OUTBOX="app",
        ASYNC_HOOKS_RELAY=False,
    )
    own = {"include_name": own_include_name} if "OWN" in os.environ else {}
    db.init_app(app)
    if "MIGRATE_FIRST" in os.environ:
        migrate.init_app(app, db, **own)
    hooks.init_app(app)
    if "MIGRATE_FIRST" not in os.environ:
        migrate.init_app(app, db, **own)

    @app.cli.command("launch")
    def launch():
        pack.enqueue()
        db.session.execute(db.text("CREATE TABLE IF NOT EXISTS legacy (number INTEGER)"))
        db.session.commit()

    @app.cli.command("drop")
    def drop():
        for name in ("deliveries", "processes", "pauses", "schema"):
            db.session.execute(db.text(f"DROP TABLE async_hooks_{name}"))
        db.session.commit()

    return app
"""


class Shop:
    """The app above, by its commands."""

    def __init__(self, folder: Path, *traits: str) -> None:
        require_module("flask_migrate")
        (folder / "shop.py").write_text(APP)
        self.folder = folder
        self.traits = dict.fromkeys(traits, "1")

    def flask(self, *words: str, exits: int = 0, **environ: str) -> str:
        """Run a command; return what it printed."""
        command = [sys.executable, "-m", "flask", "--app", "shop:create_app", *words]
        environ = {**os.environ, "FOLDER": str(self.folder), **self.traits, **environ}
        ended = subprocess.run(
            command, cwd=self.folder, env=environ, check=False, capture_output=True, text=True
        )
        assert ended.returncode == exits, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    def migrations(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("migrations/versions/*.py"))


@pytest.mark.parametrize("order", [[], ["MIGRATE_FIRST"]], ids=["ours first", "theirs first"])
def test_a_migration_leaves_the_outboxs_tables_alone(tmp_path: Path, order: list[str]) -> None:
    shop = Shop(tmp_path, *order)
    for words in (["db", "init"], ["db", "migrate"], ["db", "upgrade"], ["launch"]):
        shop.flask(*words)
    shop.flask("db", "migrate", NOTE="1")
    assert "async_hooks" not in shop.migrations()
    assert "drop_table('legacy')" in shop.migrations()
    shop.flask("db", "upgrade", NOTE="1")
    assert "1 unfinished delivery, all known." in shop.flask("async-hooks", "check")


@pytest.mark.parametrize("order", [[], ["MIGRATE_FIRST"]], ids=["ours first", "theirs first"])
def test_the_apps_own_include_name_counts_as_well(tmp_path: Path, order: list[str]) -> None:
    shop = Shop(tmp_path, "OWN", *order)
    for words in (["db", "init"], ["db", "migrate"], ["db", "upgrade"], ["launch"]):
        shop.flask(*words)
    shop.flask("db", "migrate", NOTE="1")
    assert "note" in shop.migrations()
    assert "drop_table('async_hooks" not in shop.migrations()
    assert "drop_table('legacy')" not in shop.migrations()


def test_an_include_name_of_env_py_belongs_to_migrate(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "OWN")
    shop.flask("db", "init")
    env = tmp_path / "migrations" / "env.py"
    written, own = env.read_text(), "include_name=lambda *_: True,\n            **conf_args"
    env.write_text(written.replace("**conf_args", own))
    told = shop.flask("db", "migrate", exits=1)
    assert "got multiple values for keyword argument 'include_name'" in told
    env.write_text(written)  # Where Migrate(…, include_name=…) has it, both are asked.
    for words in (["db", "migrate"], ["db", "upgrade"], ["launch"]):
        shop.flask(*words)
    shop.flask("db", "migrate", NOTE="1")
    assert "note" in shop.migrations()
    assert "drop_table('async_hooks" not in shop.migrations()
    assert "drop_table('legacy')" not in shop.migrations()


def test_tables_that_were_dropped_are_told_by_each_command(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.flask("launch")
    shop.flask("drop")
    assert "are missing in" in shop.flask("async-hooks", "check", exits=1)
    assert "had vanished" in shop.flask("async-hooks", "health", exits=1)
    assert "had vanished" in shop.flask("async-hooks", "status", exits=1)
    assert "had vanished" in shop.flask("async-hooks", "check", exits=1)
    assert "had vanished" in shop.flask("async-hooks", "init-db")
    assert "OK" in shop.flask("async-hooks", "health")
