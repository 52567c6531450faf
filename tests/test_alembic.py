"""What Alembic is told of the outbox's tables; ecosystem/test_flask_migrate.py has the real one."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, appcontext_pushed

from async_hooks import AsyncHooks
from async_hooks.alembic import include_name
from async_hooks.outbox.sql import tables
from async_hooks.outbox.sql.schema import metadata
from tests.support.apps import plain_app


class Extension:
    """What Flask-Migrate keeps in an app's extensions."""

    def __init__(self, **arguments: Any) -> None:
        self.configure_args = arguments


def an_app(**config: Any) -> Flask:
    return plain_app(ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db", ASYNC_HOOKS_RELAY=False, **config)


def test_alembic_looks_at_all_but_our_tables() -> None:
    ours = [*metadata.tables, *tables._FORMER]
    assert not any(include_name(name, "table", {}) for name in ours)
    assert include_name("orders", "table", {})
    assert include_name("async_hooks_orders", "table", {})  # The app's own.
    assert include_name(None, "schema", {})
    assert include_name("async_hooks_due", "index", {"table_name": "orders"})


@pytest.mark.parametrize("is_first", [True, False])
def test_flask_migrate_is_told_whether_it_is_set_up_before_or_after(is_first: bool) -> None:
    app, migrate = an_app(), Extension(include_name=lambda name, type_, parents: name != "legacy")
    if is_first:
        app.extensions["migrate"] = migrate
    AsyncHooks(app)
    app.extensions["migrate"] = migrate
    for _ in range(2):
        with app.app_context():
            pass
    told = migrate.configure_args["include_name"]
    assert [told(name, "table", {}) for name in ("async_hooks_pauses", "legacy", "orders")] == [
        False,
        False,
        True,
    ]


def test_once_an_app_serves_requests_nobody_looks_for_flask_migrate() -> None:
    app = an_app()
    before = set(appcontext_pushed.receivers_for(app))
    AsyncHooks(app)
    assert set(appcontext_pushed.receivers_for(app)) != before
    app.test_client().get("/")
    assert set(appcontext_pushed.receivers_for(app)) == before


def test_an_app_without_an_outbox_has_no_tables_to_tell_of() -> None:
    app, migrate = plain_app(), Extension()
    app.extensions["migrate"] = migrate
    AsyncHooks(app)
    assert migrate.configure_args == {}
