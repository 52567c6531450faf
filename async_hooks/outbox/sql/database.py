"""The database: short transactions on the driver's own connections, and what to do when it is busy.

A transaction is a function of a connection. It is begun again when the database says for certain
that nothing of it was kept (busy, deadlock, a connection that broke before COMMIT), within
:data:`PATIENCE`. When a connection breaks at COMMIT, nobody knows: then only what may safely be
done twice is done again.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from random import uniform
from typing import Any, TypeVar

from sqlalchemy import Connection as CoreConnection
from sqlalchemy import Engine, exc

from ...errors import DataError, OutboxUnavailable
from ...host.per_process import PerProcess
from . import tables
from .clock import Clock
from .connections import CommitUncertain, Connection, Pool
from .engines import LONGEST, PATIENCE, SILENCE, is_busy
from .file import FileReplaced
from .statements import Result

logger = logging.getLogger("async_hooks")

T = TypeVar("T")

#: Seconds between two tries, doubled from one to the next, with jitter.
_PAUSE, _LONGEST_PAUSE = 0.0002, 0.005


class Database:
    """Runs transactions on the engine that ``make_engine`` gives in each process."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        patience: float = PATIENCE,
        is_own: bool = False,
    ) -> None:
        """``is_own`` says that nobody else needs the engine, nor its connections after this."""
        self._patience = patience
        self._make_engine = make_engine
        self._is_own = is_own
        self._pools = PerProcess(self._open)
        self._clocks = PerProcess(lambda: Clock(self.dialect, self._ask if is_own else None))

    @property
    def engine(self) -> Engine:
        return self._pools[os.getpid()].engine

    @cached_property
    def dialect(self) -> str:
        """The name of SQLAlchemy's dialect, the same in each process."""
        return self.engine.dialect.name

    @property
    def clock(self) -> Clock:
        """The database's clock, as this process knows it."""
        return self._clocks[os.getpid()]

    def now(self) -> float:
        """Return the time, in seconds since the epoch, by the database's own clock."""
        return self.clock.now()

    def compare_clocks(self) -> None:
        """Compare this process' counting with the database's clock, if that is due."""
        self.clock.compare(self._ask)

    def _ask(self, statement: Any) -> Any:
        return self.execute(statement, urgent=True).one()

    def _open(self) -> Pool:
        engine = self._make_engine()
        if self._is_own:
            end = weakref.finalize(self, _close_all, engine, os.getpid())
            end.atexit = False  # What ends with the process has them until then.
        return Pool(engine, is_own=self._is_own)

    def transaction(
        self,
        body: Callable[[Connection], T],
        *,
        repeatable: bool = False,
        urgent: bool = False,
        takes_long: bool = False,
    ) -> T:
        """Return what ``body`` returns, once it is committed.

        ``repeatable`` says that a commit whose outcome is unknown may be done once more, and
        ``urgent`` that somebody waits: a silent server is given up sooner. What ``takes_long`` is
        given up later.

        :raises OutboxUnavailable: if it can't be, as far as anybody knows.
        """
        done: T = self._try(
            Pool.transaction, body, repeatable=repeatable, urgent=urgent, takes_long=takes_long
        )
        return done

    def execute(
        self,
        statement: Any,
        values: Mapping[str, Any] | None = None,
        *,
        repeatable: bool = False,
        urgent: bool = False,
    ) -> Result:
        """Run ``statement``, a transaction by itself.

        :raises OutboxUnavailable: as above.
        """
        repeatable = repeatable or statement.is_select
        return self._try(Pool.execute, statement, values, repeatable=repeatable, urgent=urgent)

    def read(self, body: Callable[[Connection], T], *, urgent: bool = False) -> T:
        """Return what ``body`` reads.

        :raises OutboxUnavailable: if it can't.
        """
        found: T = self._try(Pool.read, body, urgent=urgent)
        return found

    def within(self, connection: CoreConnection) -> Connection:
        """Return what runs our statements in an app's own transaction.

        SQLite's tables are made, if need be: by this connection, which may hold the lock.
        """
        pool = self._pools[os.getpid()]
        if not pool.is_prepared and connection.dialect.name == "sqlite":
            pool.note_made = tables.prepare_within(connection)
        made = Connection(connection.connection, pool)
        try:
            if not made.check_file():  # What the app has done before is undone.
                raise FileReplaced().as_lost()
        except exc.DBAPIError as error:
            pool.is_prepared = False
            pool.engine.dispose()
            made.pooled.invalidate(soft=True)  # The app undoes what it has done on it.
            raise OutboxUnavailable(f"The outbox can't be used: {error.orig}") from error
        return made

    def create(self, *, recreate: bool = False) -> bool:
        """Make the tables, or what is missing of them; return whether anything was made.

        :raises OutboxUnavailable: if that can't be done, or they have another version.
        """
        return self._try(
            lambda pool: tables.make(pool.engine, recreate=recreate), prepares=True, takes_long=True
        )

    def losses(self) -> list[str]:
        """Say that the tables had vanished, until somebody asks for them by :meth:`create`."""
        if self.dialect != "sqlite":
            return []
        return self._try(lambda pool: tables.losses(pool.engine), prepares=True)

    def check(self) -> bool:
        """Tell whether the tables are there, without making them.

        :raises OutboxUnavailable: if this code can't use them, or only an ``init-db`` makes them.
        """
        return self._try(lambda pool: tables.check(pool.engine, completely=True), prepares=True)

    def note_prepared(self) -> None:
        """Note that the tables are there: the app has committed what was done within."""
        pool = self._pools[os.getpid()]
        note, pool.note_made = pool.note_made, None
        if note is not None:
            note()
        pool.is_prepared = True

    def _try(
        self,
        step: Callable[..., T],
        *arguments: Any,
        repeatable: bool = True,
        prepares: bool = False,
        urgent: bool = False,
        takes_long: bool = False,
    ) -> T:
        """Return what ``step`` does with this process' pool; begin again as long as that helps."""
        pool = self._pools[os.getpid()]
        began = time.monotonic()
        deadline = began + self._patience
        silent_at = deadline if urgent else began + (LONGEST if takes_long else SILENCE)
        pause = _PAUSE
        is_prepared = pool.is_prepared
        while True:
            try:
                if not pool.is_prepared and not prepares:
                    self._try(
                        lambda pool: tables.prepare(pool.engine), prepares=True, urgent=urgent
                    )
                    pool.is_prepared = True
                if pool.deadlines is None:
                    return step(pool, *arguments)
                return pool.deadlines.run(silent_at, partial(step, pool, *arguments))
            except CommitUncertain as uncertain:
                error: Exception = uncertain.error
                again = repeatable or is_busy(uncertain.error)
            except exc.DBAPIError as failed:
                error = failed
                # Another file was opened than the one that was prepared, or they were dropped.
                have_vanished = is_prepared and "no such table" in str(failed.orig)
                if have_vanished:
                    pool.is_prepared = is_prepared = False
                again = failed.connection_invalidated or is_busy(failed) or have_vanished
            except exc.TimeoutError as none_free:
                error, again = none_free, self._is_own
            if isinstance(getattr(error, "orig", None), FileReplaced):
                again = True  # Nobody will find what was done there.
                what = "The outbox's file %r was removed or replaced; it is opened anew."
                logger.warning(what, pool.engine.url.database)
            if isinstance(error, (exc.DataError, exc.IntegrityError)) and not again:
                raise DataError(f"The outbox's database refuses this: {error.orig}") from error
            if not again or time.monotonic() > deadline:
                what = str(getattr(error, "orig", error)).strip() or type(error).__name__
                if pool.deadlines is not None and time.monotonic() >= silent_at:
                    what = f"no answer within {silent_at - began:g} seconds"
                where = pool.engine.url.render_as_string(hide_password=True)
                message = f"The outbox ({where}) can't be used: {what.splitlines()[0]}"
                raise OutboxUnavailable(message) from error
            time.sleep(pause * uniform(0.5, 1.5))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)


def _close_all(engine: Engine, pid: int) -> None:
    if os.getpid() == pid:  # A forked child would hang up on its parent's server.
        engine.dispose()
