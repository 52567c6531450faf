"""Opens an app's outbox as it is configured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask
from sqlalchemy import Engine, exc

from ..config import Config
from ..envelope import Envelope
from ..errors import ConfigError
from ..limits import limits_by_name, merge_of
from ..signals import send_in_context, task_discarded
from ..state import state_of
from .admin import Outbox
from .keys.promotion import Promotion
from .processes import Processes
from .sql.database import Database
from .sql.engines import engine_for, identity_of
from .store import Store

if TYPE_CHECKING:  # Loads SQLAlchemy's ORM, which only those need who have it loaded already.
    from .session import SessionOutbox

logger = logging.getLogger("async_hooks")


class Opened(NamedTuple):
    """The views of one outbox. ``session`` is there where launches join the app's transactions.

    ``identity`` names the database, the same for every app and release that uses it.
    """

    store: Store
    processes: Processes
    promotion: Promotion
    outbox: Outbox
    session: SessionOutbox | None
    identity: Callable[[], str]


def open_outbox(
    app: Flask,
    config: Config,
    audiences: Sequence[str],
    *,
    db: Any,
    session: Any,
    keep: Callable[[Sequence[Envelope]], object],
    sent: Callable[[Sequence[Envelope]], None],
) -> Opened:
    """Return the views of the outbox. Nothing connects yet.

    ``keep`` adds what no transaction of the app's takes along; ``sent`` is called when one has.

    :raises ConfigError: if it can't be opened as it is configured.
    """
    assert config.outbox is not None  # noqa: S101 - why else are we here
    scoped = db.session if db is not None else session
    if config.outbox != "app":
        database = _own(config.outbox, Path(app.instance_path), config)
    elif scoped is None:
        raise ConfigError(
            "'ASYNC_HOOKS_OUTBOX' is 'app', but no session was given. "
            "Use AsyncHooks(db=db) with Flask-SQLAlchemy, or AsyncHooks(session=…)."
        )
    else:
        database = Database(_app_engine(app, db, scoped))
    store = Store(
        database,
        audiences,
        now=database.now,
        added=lambda: sent([]),
        merge_of=lambda envelope: merge_of(state_of(app), envelope),
    )
    processes = Processes(database, audiences, store.now)
    promotion = Promotion(
        database, audiences, store.now, lambda name: limits_by_name(state_of(app), name)
    )
    joined = None
    if config.outbox == "app":
        joined = _joined(app, store, scoped, keep, sent)
    outbox = Outbox(app, store, processes)
    return Opened(store, processes, promotion, outbox, joined, lambda: identity_of(database.engine))


def _own(url: str, folder: Path, config: Config) -> Database:
    make_engine = partial(engine_for, url, folder, synchronous=config.sqlite_synchronous)
    try:
        make_engine()  # So that a wrong one is an error now; each process makes its own.
    except exc.ArgumentError:
        raise ConfigError(
            "expected 'ASYNC_HOOKS_OUTBOX' to be an SQLAlchemy URL such as "
            "'sqlite:///async_hooks.db', or 'app'"
        ) from None
    return Database(make_engine, is_own=True)


def _app_engine(app: Flask, db: Any, session: Any) -> Callable[[], Engine]:
    def engine() -> Engine:
        if db is None:  # A session of its own: no context's end may remove the caller's.
            bind: Engine = session.session_factory().get_bind()
            return bind
        with app.app_context():
            found: Engine = db.engine
            return found

    return engine


def _joined(
    app: Flask,
    store: Store,
    session: Any,
    keep: Callable[[Sequence[Envelope]], object],
    sent: Callable[[Sequence[Envelope]], None],
) -> SessionOutbox:
    # Here, because it loads SQLAlchemy's ORM, which who comes here has loaded already.
    from .session import SessionOutbox

    def dropped(envelope: Envelope) -> None:
        error = "The app's session ended without the commit that it was launched before."
        logger.warning(
            "Envelope %s of task %r is dropped: %s Call commit, or rollback if intended.",
            envelope.id,
            envelope.task,
            error,
        )
        send_in_context(task_discarded, app, envelope=envelope, error=error)

    def committed(envelopes: Sequence[Envelope]) -> None:
        store.database.note_prepared()
        sent(envelopes)

    return SessionOutbox(session, store, keep=keep, sent=committed, dropped=dropped)
