"""Single statements on the driver itself: what each delivery needs, several times, in a request.

A statement by itself is a transaction. Compiled once, on a connection that is kept and commits by
itself, it costs a fifth of what an engine's transaction does, and gives up the GIL less often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection, event, exc
from sqlalchemy.sql import ClauseElement

#: The most connections that are kept, of those that the engine may have.
KEPT = 8


class Direct:
    """Runs single statements for one process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._free: deque[PoolProxiedConnection] = deque()
        self._made = 0
        self._texts: dict[ClauseElement, tuple[str, Sequence[str] | None]] = {}
        event.listen(engine, "engine_disposed", lambda _: self._close_free())

    def run(self, statement: ClauseElement, values: Mapping[str, Any]) -> int | None:
        """Return how many rows ``statement`` changed; None if no connection is free to run it.

        :raises DBAPIError: as the engine would. If its connection was lost, nobody knows whether
            the statement was done.
        """
        connection = self._take()
        if connection is None:
            return None
        sql, names = self._texts.get(statement) or self._compile(statement)
        parameters: Any = values if names is None else [values[name] for name in names]
        driver: Any = connection.driver_connection
        try:
            cursor = driver.cursor()
            cursor.execute(sql, parameters)
            count: int = cursor.rowcount
            cursor.close()
        except BaseException as error:
            self._give_up(connection, error, sql)
            raise
        self._free.append(connection)
        return count

    def _take(self) -> PoolProxiedConnection | None:
        try:
            return self._free.pop()
        except IndexError:
            if self._made >= KEPT:
                return None
        self._made += 1
        for is_last in (False, True):
            connection = None
            try:
                connection = self._engine.raw_connection()
                self._let_commit_by_itself(connection)
            except BaseException as error:
                if connection is not None:
                    connection.invalidate()
                    self._engine.dispose()  # What lay in the pool may be as dead.
                if not isinstance(error, driver_error(self._engine)):
                    self._made -= 1
                    raise
                if connection is None or is_last:
                    self._made -= 1
                    raise self._wrapped(error, None, lost=False) from error
            else:
                return connection
        return None

    def _let_commit_by_itself(self, connection: PoolProxiedConnection) -> None:
        driver: Any = connection.driver_connection
        match self._engine.dialect.name:
            case "postgresql":
                driver.autocommit = True
            case "mysql" | "mariadb":
                driver.autocommit(True)

    def _give_up(self, connection: PoolProxiedConnection, error: BaseException, sql: str) -> None:
        """Keep ``connection`` if it is sound; let go of all if it was lost, and say so."""
        dialect: Any = self._engine.dialect
        if not isinstance(error, driver_error(self._engine)):
            self._close(connection)  # Interrupted: nobody knows in what state it is.
            return
        lost = dialect.is_disconnect(error, connection.driver_connection, None)
        if lost:
            self._close(connection)
            self._engine.dispose()  # The server went away: from all of them.
        else:
            self._free.append(connection)
        raise self._wrapped(error, sql, lost=lost) from error

    def _close_free(self) -> None:
        while True:
            try:
                self._close(self._free.pop())
            except IndexError:
                return

    def _close(self, connection: PoolProxiedConnection) -> None:
        self._made -= 1
        connection.invalidate()

    def _wrapped(self, error: BaseException, sql: str | None, *, lost: bool) -> BaseException:
        """Return what the engine would have raised."""
        return exc.DBAPIError.instance(
            sql, None, error, driver_error(self._engine), connection_invalidated=lost
        )

    def _compile(self, statement: ClauseElement) -> tuple[str, Sequence[str] | None]:
        compiled: Any = statement.compile(dialect=self._engine.dialect)
        names = compiled.positiontup if compiled.positional else None
        text = self._texts[statement] = (str(compiled), names)
        return text


def driver_error(engine: Engine) -> type[Exception]:
    """Return the root of what the driver itself raises."""
    dialect: Any = engine.dialect
    error: type[Exception] = dialect.loaded_dbapi.Error
    return error
