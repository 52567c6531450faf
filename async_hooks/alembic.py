"""Keeps Alembic's autogenerate away from the outbox's tables, which carry a version of their own.

Otherwise the next migration would drop them, because the app's models do not know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, appcontext_pushed, request_started

#: The names of our tables, now and in earlier versions. An app may have others that begin so.
_OURS = {
    "async_hooks_deliveries",
    "async_hooks_processes",
    "async_hooks_pauses",
    "async_hooks_progress",
    "async_hooks_keys",
    "async_hooks_schema",
    "async_hooks_relays",
}

IncludeName = Callable[[str | None, str, Mapping[str, Any]], bool]


def include_name(name: str | None, type_: str, parent_names: Mapping[str, Any]) -> bool:
    """Tell whether Alembic is to look at what it has found in the database: not at our tables.

    For ``context.configure(…, include_name=include_name)`` in ``env.py``. With Flask-Migrate there
    is nothing to do: it is told so already, beside an ``include_name`` of the app's own.
    """
    return type_ != "table" or name not in _OURS


def join_flask_migrate(app: Flask) -> None:
    """Let Flask-Migrate leave our tables alone, whether it is set up before or after this."""
    if _join(app):
        return
    # Whoever migrates has a context; whoever serves requests has set up all there is.
    appcontext_pushed.connect(_join_later, app, weak=False)
    request_started.connect(_give_up, app, weak=False)


def _join_later(app: Flask, **_: Any) -> None:
    if _join(app):
        _give_up(app)


def _give_up(app: Flask, **_: Any) -> None:
    appcontext_pushed.disconnect(_join_later, app)
    request_started.disconnect(_give_up, app)


def _join(app: Flask) -> bool:
    """Tell Flask-Migrate; return false if it is not there."""
    arguments = getattr(app.extensions.get("migrate"), "configure_args", None)
    if arguments is None:
        return False
    own: IncludeName | None = arguments.get("include_name")
    arguments["include_name"] = include_name if own is None else _both(own)
    return True


def _both(own: IncludeName) -> IncludeName:
    def include_both(name: str | None, type_: str, parent_names: Mapping[str, Any]) -> bool:
        return include_name(name, type_, parent_names) and own(name, type_, parent_names)

    return include_both
