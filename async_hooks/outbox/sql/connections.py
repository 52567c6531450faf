"""The driver's own connections of one process, and the statements and transactions on them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine, PoolProxiedConnection, event, exc

from .deadlines import Deadlines, connect_within
from .engines import CONNECTIONS, driver_error
from .file import FileReplaced, OpenFile, opened_path, path_of
from .statements import InsertMissing, Result, Text, compiled

logger = logging.getLogger("async_hooks")

T = TypeVar("T")

#: The most statements whose text is kept: those that are made anew each time end with the others.
_TEXTS = 200

#: Where a pooled connection has its file.
_FILE = "async_hooks.file"


class CommitUncertain(Exception):
    """A commit failed: it may have been done all the same."""

    def __init__(self, error: exc.DBAPIError) -> None:
        super().__init__()
        self.error = error


class Connection:
    """A connection of the driver's, on which statements run."""

    def __init__(self, pooled: PoolProxiedConnection, pool: Pool) -> None:
        self.pooled = pooled
        driver: Any = pooled.driver_connection
        self.driver = driver
        self.cursor = driver.cursor()
        #: SQLite's file, as it was when it was opened.
        self.file: OpenFile | None = pool.file_of(pooled)
        self._pool = pool

    def check_file(self) -> bool:
        """Make sure that what was done here is where others look; tell whether more can be done.

        :raises DBAPIError: if it is not, as the file was removed or replaced.
        """
        if self.file is None or not self.file.is_replaced():
            return True
        with suppress(self._pool.driver_error):
            if self.file.save(self.driver):
                return False
        raise FileReplaced().as_lost()

    def execute(self, statement: Any, values: Mapping[str, Any] | None = None) -> Result:
        """Run ``statement`` with ``values``.

        :raises DBAPIError: as SQLAlchemy would.
        """
        text = self._pool.texts.get(statement) or self._pool.compile(statement)
        values = {**text.fixed, **(values or {})}
        parameters = values if text.names is None else [values[name] for name in text.names]
        try:
            self.cursor.execute(text.sql, parameters)
            rows = [] if text.row is None else [text.row(row) for row in self.cursor.fetchall()]
        except self._pool.driver_error as error:
            raise self._pool.wrapped(error, text.sql, self.driver) from error
        return Result(rows, self.cursor.rowcount)

    def add(self, statement: InsertMissing, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add those of ``rows``, in the order of its columns, that are not there, all in a step."""
        text = self._pool.texts.get(statement) or self._pool.compile(statement)
        values: Sequence[Any] = rows
        if text.names is None:
            values = [dict(zip(statement.columns, row, strict=True)) for row in rows]
        try:
            self.cursor.executemany(text.sql, values)
        except self._pool.driver_error as error:
            raise self._pool.wrapped(error, text.sql, self.driver) from error

    def say(self, sql: str) -> None:
        """Run plain SQL that has no values and finds nothing."""
        try:
            self.cursor.execute(sql)
        except self._pool.driver_error as error:
            raise self._pool.wrapped(error, sql, self.driver) from error


class Pool:
    """One process' connections to the database of ``engine``.

    Those of an engine of ours are kept, and commit each statement by themselves; those of an app's
    engine go back into its pool after each transaction, as they were.
    """

    def __init__(self, engine: Engine, *, is_own: bool) -> None:
        self.engine = engine
        self.texts: dict[Any, Text] = {}
        self.driver_error = driver_error(engine.dialect)
        #: Whether the tables were found, or made, by this process.
        self.is_prepared = False
        #: What remembers them, once the app commits those that it has let us make.
        self.note_made: Callable[[], None] | None = None
        self._is_own = is_own
        self._free: deque[Connection] = deque()
        is_sqlite = engine.dialect.name == "sqlite"
        self._has_file = is_sqlite
        self._needs_autocommit = is_own and not is_sqlite
        # An app's connection begins by itself, but in SQLite only to read.
        self._begin = "BEGIN IMMEDIATE" if is_sqlite else "BEGIN" if is_own else None
        event.listen(engine, "engine_disposed", lambda _: self._close_free())
        if is_sqlite:
            event.listen(engine, "connect", self._note_file)
        #: What ends connections in time, where they lead to a server.
        self.deadlines: Deadlines | None = None if is_sqlite else Deadlines()
        if self.deadlines is not None:
            self._listen(self.deadlines)

    def read(self, body: Callable[[Connection], T]) -> T:
        connection = self._take()
        if self.deadlines is not None:
            self.deadlines.add(connection.driver)
        try:
            result = body(connection)
            is_current = connection.check_file()
        except BaseException as error:
            if self._is_sound(connection, error):
                self._give_back(connection)
            else:
                connection.pooled.invalidate()
                is_replaced = isinstance(getattr(error, "orig", None), FileReplaced)
                self.is_prepared = self.is_prepared and not is_replaced
                if self._is_own or is_replaced:
                    self.engine.dispose()  # The server, or the file, went away: from all of them.
            raise
        if is_current:
            self._give_back(connection)
        else:
            what = "The log of the outbox's file %r was removed; what it held was saved in time."
            logger.warning(what, self.engine.url.database)
            # It went away from all of them, and the file may be another by now.
            self.is_prepared = False
            connection.pooled.invalidate()
            self.engine.dispose()
        return result

    def transaction(self, body: Callable[[Connection], T]) -> T:
        def whole(connection: Connection) -> T:
            if self._begin is not None:
                connection.say(self._begin)
            result = body(connection)
            try:
                connection.say("COMMIT")
            except exc.DBAPIError as error:
                raise CommitUncertain(error) from error
            return result

        return self.read(whole)

    def execute(self, statement: Any, values: Mapping[str, Any] | None) -> Result:
        if not self._is_own and not statement.is_select:
            return self.transaction(lambda connection: connection.execute(statement, values))
        try:
            return self.read(lambda connection: connection.execute(statement, values))
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                raise CommitUncertain(error) from error
            raise

    def compile(self, statement: Any) -> Text:
        """Keep the text of ``statement``, and return it."""
        if len(self.texts) >= _TEXTS:
            self.texts.clear()
        text = self.texts[statement] = compiled(statement, self.engine.dialect)
        return text

    def wrapped(self, error: Exception, sql: str | None, driver: Any) -> Any:
        """Return what SQLAlchemy would raise for ``error``, marked if it lost the connection."""
        is_lost = driver is not None and self.engine.dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]
        return exc.DBAPIError.instance(
            sql, None, error, self.driver_error, connection_invalidated=is_lost
        )

    def file_of(self, pooled: PoolProxiedConnection) -> OpenFile | None:
        """Return the file that a connection has open; of an old one of an app's, as it is now."""
        if self._has_file and _FILE not in pooled.info:
            self._note_file(pooled.driver_connection, pooled)
        file: OpenFile | None = pooled.info.get(_FILE)
        return file

    def _listen(self, deadlines: Deadlines) -> None:
        """Let the deadline of a step hold from the first byte on, whoever takes the connection."""
        event.listen(self.engine, "do_connect", partial(connect_within, deadlines))
        event.listen(self.engine, "connect", lambda driver, _: deadlines.add(driver), insert=True)
        event.listen(self.engine, "checkout", lambda driver, *_: deadlines.add(driver))
        event.listen(self.engine, "checkin", lambda driver, _: deadlines.remove(driver))

    def _note_file(self, driver: Any, record: Any) -> None:
        path = opened_path(driver)
        record.info[_FILE] = None if path is None else OpenFile(path, path_of(self.engine.url))

    def _take(self) -> Connection:
        with suppress(IndexError):
            return self._free.pop()
        pool: Any = self.engine.pool
        if self._is_own and pool.checkedout() >= CONNECTIONS:
            raise exc.TimeoutError("All connections are in use.")
        pooled: PoolProxiedConnection | None = None
        try:
            pooled = self.engine.raw_connection()
            if self._needs_autocommit:
                driver: Any = pooled.driver_connection
                self.engine.dialect.set_isolation_level(driver, "AUTOCOMMIT")
            return Connection(pooled, self)
        except self.driver_error as error:
            lost = self.wrapped(error, None, pooled and pooled.driver_connection)
            if pooled is not None:  # It lay in the pool, and was closed meanwhile.
                pooled.invalidate()
            raise lost from error

    def _give_back(self, connection: Connection) -> None:
        if not self._is_own:
            connection.cursor.close()
            connection.pooled.close()
        elif self.deadlines is None or self.deadlines.remove(connection.driver):
            self._free.append(connection)
        else:  # Its deadline came just now.
            connection.pooled.invalidate()

    def _is_sound(self, connection: Connection, error: BaseException) -> bool:
        """Undo what was not committed; tell whether the connection can be used again."""
        if not isinstance(error, Exception):
            return False  # Interrupted: nobody knows in what state it is.
        if getattr(error, "connection_invalidated", False):
            return False
        try:
            if self._needs_autocommit:
                connection.say("ROLLBACK")
            else:
                connection.driver.rollback()
        except (exc.DBAPIError, self.driver_error):
            return False
        return True

    def _close_free(self) -> None:
        with suppress(IndexError):
            while True:
                self._free.pop().pooled.invalidate()
