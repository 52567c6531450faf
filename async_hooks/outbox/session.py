"""Launches that join the app's own transactions.

``commit`` means sent, ``rollback`` means it never existed, also for a savepoint. A launch waits
with its session until the root transaction is about to commit, and is inserted there: no lock is
taken, and no statement made, before the app itself writes for good. What was launched without
anything being written is kept by a transaction of our own, when the app's ends or the request does.

A launch belongs to the innermost transaction that was open when it was made, or else to the next
one. That transaction's end decides: released, it belongs to the one outside; rolled back, it is
gone; closed with neither, it is dropped loudly if the app had written something that was dropped
with it, and else kept. Changes that were not flushed, nor there when something was launched, are
not seen if ``close`` throws them away.
"""

from __future__ import annotations

import itertools
import re
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

_numbers = itertools.count(1)

#: Stands for a context's sessions when it has ended.
_OVER: tuple[Session, ...] = ()

#: First words of a statement in plain SQL that changes nothing; WITH may introduce either.
_READS = {
    *("SELECT", "SHOW", "PRAGMA", "EXPLAIN", "DESCRIBE", "VALUES", "TABLE"),
    *("SET", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK"),
}
_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*|/\*.*?\*/)*+(\w+)", re.DOTALL)
_CHANGE = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|REPLACE)\b", re.IGNORECASE)

#: Whose something is: a savepoint's, or, None, the root transaction's, this one's or the next's.
Owner = SessionTransaction | None


class Waiting:
    """What one session holds back: each addition with its owner."""

    def __init__(self) -> None:
        self.additions: list[tuple[Addition, Owner]] = []
        #: The ids of those that the coming commit takes along.
        self.inserted: set[str] = set()
        #: Owners of what would be lost without a commit.
        self.written: set[Owner] = set()
        #: Whether the root transaction may hold locks.
        self.locks = False
        self.committed: SessionTransaction | None = None
        self.rolled_back: SessionTransaction | None = None

    def all(self) -> list[Addition]:
        return [addition for addition, _ in self.additions]

    def take(self) -> list[Addition]:
        """Let go of all."""
        taken = self.all()
        self.additions = []
        return taken

    def move(self, old: SessionTransaction, new: Owner) -> None:
        """Let what was of a savepoint be of the transaction around it."""
        self.additions = [
            (addition, new if owner is old else owner) for addition, owner in self.additions
        ]
        if old in self.written:
            self.written.remove(old)
            self.written.add(new)

    def drop(self, owner: Owner) -> None:
        """Let what is of ``owner`` be undone."""
        self.additions = [pair for pair in self.additions if pair[1] is not owner]
        self.written.discard(owner)


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
        self._key = f"async_hooks.{next(_numbers)}"  # One session may serve several apps.
        self._insert = insert
        self._keep = keep
        self._sent = sent
        self._dropped = dropped
        self._sessions: weakref.WeakKeyDictionary[Connection, weakref.ref[Session]]
        self._sessions = weakref.WeakKeyDictionary()
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
        if g.get(self._key) is _OVER:
            self._keep([addition])  # Nobody asks again in this context.
            return
        session = self._session()
        waiting = self._waiting(session)
        waiting.additions.append((addition, session.get_nested_transaction()))
        self._has_written(session)
        g.setdefault(self._key, set()).add(session)

    def waiting(self, unique_key: str) -> str | None:
        """Return the id of what waits in this session under ``unique_key``."""
        for addition in self._waiting(self._session()).all():
            if addition.terms.unique_key == unique_key:
                return addition.envelope.id
        return None

    def locking_connection(self) -> Connection | None:
        """Return the connection of the session's transaction, if that may hold locks."""
        session = self._session()
        return session.connection() if self._waiting(session).locks else None

    def flush(self, *, is_last: bool = False) -> None:
        """Keep what waits in sessions that have written nothing; a request ends.

        After the last time, what this context launches is kept at once.

        :raises OutboxUnavailable: if it can't be kept.
        """
        sessions = g.get(self._key, ())
        if is_last:
            setattr(g, self._key, _OVER)
        for session in sessions:
            waiting = self._waiting(session)
            # What was written and undone may still lock: then the transaction's end comes first.
            if waiting.additions and not self._has_written(session) and not waiting.locks:
                self._keep(waiting.take())

    def complete(self, body: Callable[[Connection], bool]) -> bool:
        """Commit the session with what ``body`` writes; roll it back if that is stale.

        :raises OutboxUnavailable: if the database was busy: nothing was kept.
        """
        session = self._session()
        try:
            done = body(session.connection())
            if done:
                session.commit()
        except Exception as error:
            session.rollback()
            if isinstance(error, DBAPIError) and is_busy(error):
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
        written = self._waiting(session).written
        if (
            session.new
            or session.deleted
            or any(session.is_modified(thing) for thing in session.dirty)
        ):
            written.add(session.get_nested_transaction())
        return bool(written)

    # -- events

    def _after_begin(self, session: Session, _: Any, connection: Connection) -> None:
        self._sessions[connection] = weakref.ref(session)
        if connection.engine not in self._watched:
            self._watched.add(connection.engine)
            _listen(connection.engine, self._before_cursor_execute)

    def _before_cursor_execute(
        self, connection: Connection, _: Any, statement: str, __: Any, context: Any, ___: Any
    ) -> None:
        found = self._sessions.get(connection)
        session = found() if found is not None else None
        if session is not None and session.in_transaction() and _changes(statement, context):
            waiting = self._waiting(session)
            waiting.written.add(session.get_nested_transaction())
            waiting.locks = True

    def _before_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is not None:
            return
        session.flush()  # It may launch something, and shows whether anything is written.
        waiting = self._waiting(session)
        additions = waiting.all()
        if additions and self._has_written(session):
            self._insert(session.connection(), additions)
            waiting.inserted = {addition.envelope.id for addition in additions}

    def _after_commit(self, session: Session) -> None:
        self._waiting(session).committed = _innermost(session)

    def _after_rollback(self, session: Session) -> None:
        waiting, savepoint = self._waiting(session), session.get_nested_transaction()
        waiting.rolled_back = _innermost(session)
        waiting.drop(savepoint)
        waiting.locks = waiting.locks and savepoint is not None

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        waiting = self._waiting(session)
        if transaction.nested and waiting.rolled_back is transaction:
            waiting.drop(transaction)
        elif transaction.nested:
            waiting.move(transaction, _outer(transaction))
        elif transaction.parent is None:
            self._end(waiting, transaction, is_lost=self._has_written(session))

    def _end(self, waiting: Waiting, root: SessionTransaction, *, is_lost: bool) -> None:
        """Let everything that waited for the end of ``root`` know what became of it."""
        additions, inserted = waiting.take(), waiting.inserted
        waiting.inserted, waiting.written, waiting.locks = set(), set(), False
        if waiting.rolled_back is root:
            return
        if waiting.committed is root:
            # Not inserted: if nothing was written, or by root.commit() over an open savepoint.
            additions = [each for each in additions if each.envelope.id not in inserted]
            if inserted:
                self._sent()
        elif is_lost:
            for addition in additions:
                self._dropped(addition)
            return
        if additions:
            self._keep(additions)


def _changes(statement: str, context: Any) -> bool:
    """Tell whether a statement, so executed, may have changed something."""
    if context is None:
        return False
    if context.compiled is not None and not context.is_text:
        return bool(context.isinsert or context.isupdate or context.isdelete or context.isddl)
    first = _FIRST_WORD.match(statement)
    word = first[1].upper() if first is not None else "SELECT"
    return word not in _READS and (word != "WITH" or _CHANGE.search(statement) is not None)


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _outer(savepoint: SessionTransaction) -> Owner:
    """Return the savepoint that ``savepoint`` lies in, None for the root."""
    outer = savepoint.parent
    while outer is not None and not outer.nested:
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
