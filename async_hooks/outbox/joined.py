"""Launches that join the app's own transactions.

``commit`` means sent, ``rollback`` means it never existed, also for a savepoint. A launch waits
with its session until the root transaction is about to commit, and is inserted there: no lock is
taken, and no statement made, before the app itself writes for good. What a request launched
without writing anything is kept by a transaction of our own when the request ends.

A launch belongs to the innermost transaction that was open when it was made. That transaction's
end decides: released, it belongs to the one outside; rolled back, it is gone; closed with neither,
it is dropped loudly if the app had written something that was dropped with it, and else waits on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from flask import g
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from ..delivery import Addition
from ..errors import OutboxUnavailable
from .database import is_busy

_KEY = "async_hooks"

#: First words of a statement in plain SQL that changes nothing.
_READS = {"SELECT", "SHOW", "PRAGMA", "EXPLAIN", "SET", "SAVEPOINT", "RELEASE", "BEGIN", "VALUES"}


class Waiting:
    """What one session holds back: each addition with the transaction it belongs to, if any."""

    def __init__(self) -> None:
        self.additions: list[tuple[Addition, SessionTransaction | None]] = []
        self.has_written = False
        self.committed: SessionTransaction | None = None
        self.rolled_back: SessionTransaction | None = None
        self.connections: list[Connection] = []

    def of(self, transaction: SessionTransaction | None) -> list[Addition]:
        return [addition for addition, owner in self.additions if owner is transaction]

    def move(self, old: SessionTransaction, new: SessionTransaction | None) -> None:
        self.additions = [
            (addition, new if owner is old else owner) for addition, owner in self.additions
        ]

    def drop(self, transaction: SessionTransaction) -> None:
        self.additions = [pair for pair in self.additions if pair[1] is not transaction]


class Joined:
    """Watches ``session``. ``insert`` writes additions by a connection of its transaction.

    ``sent`` is called when they are committed, ``dropped`` for each that a forgotten commit lost.
    ``keep`` adds those that there was no commit for, because nothing was written.
    """

    def __init__(
        self,
        session: scoped_session[Any],
        *,
        insert: Callable[[Connection, list[Addition]], None],
        keep: Callable[[Sequence[Addition]], object],
        sent: Callable[[], None],
        dropped: Callable[[Addition], None],
    ) -> None:
        self._session = session
        self._key = f"{_KEY}.{id(self)}"  # One session may serve several apps.
        self._insert = insert
        self._keep = keep
        self._sent = sent
        self._dropped = dropped
        self._wrote: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        for listener in (
            self._after_begin,
            self._before_commit,
            self._after_commit,
            self._after_rollback,
            self._after_transaction_end,
        ):
            _listen(session, listener)

    def add(self, addition: Addition) -> None:
        """Let ``addition`` wait for this session's commit."""
        session = self._session()
        waiting = self._waiting(session)
        waiting.additions.append((addition, _innermost(session)))
        g.setdefault(self._key, set()).add(session)

    def waiting(self, unique_key: str) -> str | None:
        """Return the id of what waits in this session under ``unique_key``."""
        for addition, _ in self._waiting(self._session()).additions:
            if addition.terms.unique_key == unique_key:
                return addition.envelope.id
        return None

    def flush(self) -> None:
        """Keep what waits in sessions that have written nothing; a request ends.

        :raises OutboxUnavailable: if it can't be kept.
        """
        for session in g.get(self._key, ()):
            waiting = self._waiting(session)
            if waiting.additions and not self._has_written(session):
                additions = [addition for addition, _ in waiting.additions]
                waiting.additions = []
                self._keep(additions)

    def complete(self, body: Callable[[Connection], bool]) -> bool:
        """Commit the session with what ``body`` writes; roll it back if that is stale.

        :raises OutboxUnavailable: if the database was busy: nothing was kept.
        """
        session = self._session()
        try:
            done = body(session.connection())
            if done:
                session.commit()
        except DBAPIError as error:
            session.rollback()
            if is_busy(error):
                raise OutboxUnavailable(f"The app's database is busy: {error.orig}") from error
            raise
        if not done:
            session.rollback()
        return done

    def _waiting(self, session: Session) -> Waiting:
        waiting: Waiting = session.info.setdefault(self._key, Waiting())
        return waiting

    def _has_written(self, session: Session) -> bool:
        """Tell whether something would be lost without a commit; once so, so until the end."""
        waiting = self._waiting(session)
        waiting.has_written = waiting.has_written or bool(
            session.new
            or session.deleted
            or any(session.is_modified(thing) for thing in session.dirty)
            or any(connection in self._wrote for connection in waiting.connections)
        )
        return waiting.has_written

    # -- events

    def _after_begin(self, session: Session, _: Any, connection: Connection) -> None:
        self._waiting(session).connections.append(connection)
        if connection.engine not in self._watched:
            self._watched.add(connection.engine)
            _listen(connection.engine, self._after_cursor_execute)

    def _after_cursor_execute(
        self, connection: Connection, _: Any, statement: str, __: Any, context: Any, ___: Any
    ) -> None:
        if context is None or connection in self._wrote:
            return
        changes = context.isinsert or context.isupdate or context.isdelete
        if not changes and context.compiled is None:
            words = statement.split(None, 1)
            changes = bool(words) and words[0].upper() not in _READS
        if changes:
            self._wrote.add(connection)

    def _before_commit(self, session: Session) -> None:
        waiting = self._waiting(session)
        if session.get_nested_transaction() is not None or not waiting.additions:
            return
        root = session.get_transaction()
        waiting.additions = [(addition, root) for addition, _ in waiting.additions]
        self._insert(session.connection(), waiting.of(root))

    def _after_commit(self, session: Session) -> None:
        self._waiting(session).committed = _innermost(session)

    def _after_rollback(self, session: Session) -> None:
        self._waiting(session).rolled_back = _innermost(session)

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        waiting = self._waiting(session)
        is_root = transaction.parent is None
        if not is_root and not transaction.nested:
            return
        if waiting.rolled_back is transaction:
            waiting.drop(transaction)
        elif not is_root:
            waiting.move(transaction, _outer(transaction))
        elif waiting.committed is transaction:
            was_any = bool(waiting.of(transaction))
            waiting.drop(transaction)
            if was_any:
                self._sent()
        elif self._has_written(session):
            for addition in waiting.of(transaction):
                self._dropped(addition)
            waiting.drop(transaction)
        else:
            waiting.move(transaction, None)
        if is_root:
            self._wrote.difference_update(waiting.connections)
            waiting.connections = []
            waiting.has_written = False


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _outer(transaction: SessionTransaction) -> SessionTransaction | None:
    """Return the root or savepoint that ``transaction`` lies in; a flush's own is neither."""
    outer = transaction.parent
    while outer is not None and outer.parent is not None and not outer.nested:
        outer = outer.parent
    return outer


def _listen(target: Any, method: Callable[..., None]) -> None:
    """Connect ``method`` to the event of its name, for as long as its object lives."""
    listener = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        alive = listener()
        if alive is not None:
            alive(*args)

    event.listen(target, method.__name__.removeprefix("_"), call)
