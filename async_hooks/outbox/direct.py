"""Statements on the driver itself: what each delivery needs, several times, in a request.

Compiled once, on a connection that is kept, a statement costs a fifth of what it does through the
engine, and gives up the GIL less often. By itself it is a transaction.
"""

from __future__ import annotations

from collections import deque, namedtuple
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Engine, PoolProxiedConnection, event, exc

T = TypeVar("T")

#: The most connections that are kept, of those that the engine may have.
KEPT = 8

#: The most statements whose text is kept: those that are made anew each time end with the others.
_TEXTS = 200


class Executes(Protocol):
    """What a body may ask of a connection, be it the engine's or the driver's own."""

    def execute(self, statement: Any, parameters: Any = None, /) -> Any:
        """Return what has ``all()``, the rows, and ``rowcount``."""
        ...


class NoneFree(Exception):
    """All connections that are kept are in use."""


class Unknown(Exception):
    """A commit failed: it may have been done all the same."""

    def __init__(self, error: exc.DBAPIError) -> None:
        super().__init__()
        self.error = error


class _Text(NamedTuple):
    """A compiled statement: the names of its values in order, or None, and what makes its rows."""

    sql: str
    names: Sequence[str] | None
    fixed: Mapping[str, Any]
    row: Callable[[Any], Any] | None

    def parameters(self, values: Mapping[str, Any]) -> Any:
        if self.fixed:
            values = {**self.fixed, **values}
        return values if self.names is None else [values[name] for name in self.names]


class _Found(NamedTuple):
    """What a statement has found or changed."""

    rows: list[Any]
    rowcount: int

    def all(self) -> list[Any]:
        return self.rows


class Direct:
    """Runs statements for one process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._begin = "BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else "BEGIN"
        self._free: deque[PoolProxiedConnection] = deque()
        self._made = 0
        self._texts: dict[Any, _Text] = {}
        event.listen(engine, "engine_disposed", lambda _: self._close_free())

    def change(self, statement: Any, values: Mapping[str, Any]) -> int:
        """Return how many rows ``statement``, by itself, has changed.

        :raises NoneFree: if no connection is free to run it.
        :raises Unknown: if its connection was lost.
        :raises DBAPIError: as the engine would.
        """
        connection = self._take()
        text = self._texts.get(statement) or self._compile(statement)
        try:
            cursor: Any = connection.driver_connection.cursor()  # type: ignore[union-attr]
            cursor.execute(text.sql, text.parameters(values))
            count: int = cursor.rowcount
            cursor.close()
        except BaseException as error:
            self._give_up(connection, error, text.sql, is_over=True)
            raise
        self._free.append(connection)
        return count

    def do(self, body: Callable[[Executes], T], *, writes: bool) -> T:
        """Return what ``body`` does; what it ``writes`` is one transaction.

        :raises NoneFree: if no connection is free for it.
        :raises Unknown: if its commit failed.
        :raises DBAPIError: as the engine would.
        """
        connection = self._take()
        kept = _Kept(self, connection.driver_connection)
        is_over = False
        try:
            if writes:
                kept.say(self._begin)
            result = body(kept)
            if writes:
                is_over = True
                kept.say("COMMIT")
        except BaseException as error:
            self._give_up(connection, error, None, is_over=is_over)
            raise
        self._free.append(connection)
        return result

    def _take(self) -> PoolProxiedConnection:
        try:
            return self._free.pop()
        except IndexError:
            if self._made >= KEPT:
                raise NoneFree from None
        self._made += 1
        try:
            return self._make()
        except BaseException:
            self._made -= 1
            raise

    def _make(self) -> PoolProxiedConnection:
        """Return a new connection. One that lay in the pool may be dead: then another one."""
        is_last = False
        while True:
            connection = None
            try:
                connection = self._engine.raw_connection()
                self._let_commit_by_itself(connection)
                return connection
            except driver_error(self._engine) as error:
                if connection is not None:
                    connection.invalidate()
                    self._engine.dispose()
                if connection is None or is_last:
                    raise self._wrapped(error, None, lost=False) from error
            is_last = True

    def _let_commit_by_itself(self, connection: PoolProxiedConnection) -> None:
        driver: Any = connection.driver_connection
        match self._engine.dialect.name:
            case "postgresql":
                driver.autocommit = True
            case "mysql" | "mariadb":
                driver.autocommit(True)

    def _give_up(
        self,
        connection: PoolProxiedConnection,
        error: BaseException,
        sql: str | None,
        *,
        is_over: bool,
    ) -> None:
        """Keep ``connection`` if it is sound; let go of all if it was lost, and say so.

        ``is_over`` says that what was lost was told to be kept, and may be.
        """
        driver: Any = connection.driver_connection
        kind = driver_error(self._engine)
        if not isinstance(error, kind):
            self._close(connection)  # Interrupted: nobody knows in what state it is.
            return
        dialect: Any = self._engine.dialect
        lost = dialect.is_disconnect(error, driver, None)
        if not lost:
            try:
                driver.rollback()
            except kind:
                lost = True
        wrapped = self._wrapped(error, sql, lost=lost)
        if lost:
            self._close(connection)
            self._engine.dispose()  # The server went away: from all of them.
        else:
            self._free.append(connection)
        if is_over and (lost or sql is None):
            raise Unknown(wrapped) from error
        raise wrapped from error

    def _close_free(self) -> None:
        with suppress(IndexError):
            while True:
                self._close(self._free.pop())

    def _close(self, connection: PoolProxiedConnection) -> None:
        self._made -= 1
        connection.invalidate()

    def _wrapped(self, error: BaseException, sql: str | None, *, lost: bool) -> Any:
        """Return what the engine would have raised."""
        return exc.DBAPIError.instance(
            sql, None, error, driver_error(self._engine), connection_invalidated=lost
        )

    def _compile(self, statement: Any) -> _Text:
        compiled: Any = statement.compile(dialect=self._engine.dialect)
        binds = compiled.binds.items()
        text = _Text(
            sql=str(compiled),
            names=compiled.positiontup if compiled.positional else None,
            fixed={name: bind.value for name, bind in binds if not bind.required},
            row=_row_of(statement) if statement.is_select else None,
        )
        if len(self._texts) >= _TEXTS:
            self._texts.clear()
        self._texts[statement] = text
        return text


def _row_of(query: Any) -> Callable[[Any], Any]:
    make: Any = namedtuple
    row: Callable[[Any], Any] = make("Row", query.selected_columns.keys())._make
    return row


class _Kept:
    """A connection that is kept, as a body sees it."""

    def __init__(self, direct: Direct, driver: Any) -> None:
        self._direct = direct
        self._cursor = driver.cursor()

    def say(self, sql: str) -> None:
        self._cursor.execute(sql)

    def execute(self, statement: Any, parameters: Any = None, /) -> _Found:
        direct, cursor = self._direct, self._cursor
        text = direct._texts.get(statement) or direct._compile(statement)
        cursor.execute(text.sql, text.parameters(parameters or {}))
        rows = [] if text.row is None else [text.row(found) for found in cursor.fetchall()]
        return _Found(rows, cursor.rowcount)


def driver_error(engine: Engine) -> type[Exception]:
    """Return the root of what the driver itself raises."""
    dialect: Any = engine.dialect
    error: type[Exception] = dialect.loaded_dbapi.Error
    return error
