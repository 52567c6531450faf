"""Opens an app's outbox as it is configured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import Connection, Engine, exc, make_url

from ..config import Config
from ..delivery import Addition
from ..errors import ConfigError
from ..signals import send_in_context, task_discarded
from . import store
from .admin import Outbox
from .database import Database, engine_for
from .ledger import Ledger

logger = logging.getLogger("async_hooks")


def open_outbox(
    app: Flask,
    config: Config,
    name: str,
    *,
    db: Any,
    session: Any,
    keep: Callable[[Sequence[Addition]], object],
    sent: Callable[[], None],
) -> tuple[Ledger, Outbox]:
    """Return the two views of the outbox: the library's own, and the users'. Nothing connects yet.

    ``keep`` adds what no transaction of the app's takes along; ``sent`` is called when one has.

    :raises ConfigError: if it can't be opened as it is configured.
    """
    assert config.outbox is not None  # noqa: S101 - why else are we here
    if config.outbox != "app":
        ledger = Ledger(name, _own(config.outbox, Path(app.instance_path), config))
    else:
        scoped = db.session if db is not None else session
        if scoped is None:
            raise ConfigError(
                "'ASYNC_HOOKS_OUTBOX' is 'app', but which session that is, nobody said. "
                "Use AsyncHooks(db=db) with Flask-SQLAlchemy, or AsyncHooks(session=…)."
            )
        ledger = _joined(app, name, db, scoped, keep, sent)
    return ledger, Outbox(app, ledger)


def _own(url: str, folder: Path, config: Config) -> Database:
    try:
        make_url(url)
    except exc.ArgumentError:
        raise ConfigError(
            "expected 'ASYNC_HOOKS_OUTBOX' to be an SQLAlchemy URL such as "
            "'sqlite:///async_hooks.db', or 'app'"
        ) from None
    # Made once here so that a wrong one is an error now; each process makes its own.
    engine_for(url, folder, synchronous=config.sqlite_synchronous)
    return Database(
        lambda: engine_for(url, folder, synchronous=config.sqlite_synchronous), is_own=True
    )


def _joined(
    app: Flask,
    name: str,
    db: Any,
    session: Any,
    keep: Callable[[Sequence[Addition]], object],
    sent: Callable[[], None],
) -> Ledger:
    # Here, because it loads SQLAlchemy's ORM, which who comes here has loaded already.
    from .session import Joined

    def engine() -> Engine:
        if db is None:  # A session of its own: no context's end may remove the caller's.
            bind: Engine = session.session_factory().get_bind()
            return bind
        with app.app_context():
            found: Engine = db.engine
            return found

    def insert(connection: Connection, additions: list[Addition]) -> None:
        database.prepare_within(connection)
        store.add(connection, additions, now=ledger.now())

    def dropped(addition: Addition) -> None:
        error = "The app's session ended without the commit that it was launched before."
        logger.warning(
            "Envelope %s of task %r is dropped: %s Call commit, or rollback if that is meant.",
            addition.envelope.id,
            addition.envelope.task,
            error,
        )
        send_in_context(task_discarded, app, envelope=addition.envelope, error=error)

    def committed() -> None:
        database.note_prepared()
        sent()

    database = Database(engine)
    joined = Joined(session, insert=insert, keep=keep, sent=committed, dropped=dropped)
    ledger = Ledger(name, database, joined=joined)
    return ledger
