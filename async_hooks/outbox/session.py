"""Launches that join the app's own transactions.

``commit`` means sent, ``rollback`` means it never existed, also for a savepoint. A launch waits
with its session until the root transaction is about to commit, and is inserted there: no lock is
taken, and no statement made, before the app itself commits. What was launched without
anything being written is kept by a transaction of our own, when the app's ends or the request does.

A launch belongs to the innermost transaction that was open when it was made, or else to the next
one. That transaction's end decides: released, it belongs to the one outside; rolled back, it is
gone; closed with neither, it is dropped loudly if the app had written something that was dropped
with it, and else kept. Changes that were not flushed, nor there when something was launched, are
not seen if ``close`` throws them away.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from flask import g
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin, scoped_session

from ..delivery import Ending
from ..envelope import Envelope
from ..errors import OutboxUnavailable
from .pending import Pending, innermost, outer
from .sql.engines import is_busy
from .sql.sql_words import changes
from .store import Store

T = TypeVar("T")

_numbers = itertools.count(1)

#: Stands for a context's sessions when it has ended.
_CLOSED: tuple[Session, ...] = ()


class SessionOutbox:
    """Adds launches to ``store`` in the transactions of ``session``.

    ``sent`` is called with those that are committed, ``dropped`` for each that a forgotten commit
    lost. ``keep`` adds those that there was no commit for, because nothing was written.
    """

    def __init__(
        self,
        session: scoped_session[Any],
        store: Store,
        *,
        keep: Callable[[Sequence[Envelope]], object],
        sent: Callable[[Sequence[Envelope]], None],
        dropped: Callable[[Envelope], None],
    ) -> None:
        self._session = session
        self._key = f"async_hooks.{next(_numbers)}"  # One session may serve several apps.
        self._store = store
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

    def add(self, envelopes: Sequence[Envelope]) -> None:
        """Let ``envelopes`` wait for this session's commit."""
        if g.get(self._key) is _CLOSED:
            self._keep(envelopes)  # Nobody asks again in this context.
            return
        session = self._session()
        pending, owner = self._pending(session), session.get_nested_transaction()
        pending.launches.extend((envelope, owner) for envelope in envelopes)
        self._has_written(session)
        g.setdefault(self._key, set()).add(session)

    def unfinished(self, unique_key: str) -> str | None:
        """Return the id of what has ``unique_key``, waiting in this session or in the table."""
        session = self._session()
        pending = self._pending(session)
        for envelope in pending.all():
            if envelope.unique_key == unique_key:
                return envelope.id
        # Another connection would wait for what this one has locked.
        within = session.connection() if pending.locks else None
        return self._store.unfinished(unique_key, within=within)

    def flush(self, *, is_last: bool = False) -> None:
        """Keep what waits in sessions that have written nothing; a request ends.

        After the last time, what this context launches is kept at once.

        :raises OutboxUnavailable: if it can't be kept.
        """
        sessions = g.get(self._key, ())
        if is_last:
            setattr(g, self._key, _CLOSED)
        for session in sessions:
            pending = self._pending(session)
            # What was written and undone may still lock: then the transaction's end comes first.
            if pending.launches and not self._has_written(session) and not pending.locks:
                self._keep(pending.take())

    def record(self, envelope: Envelope, ending: Ending) -> bool:
        """Commit the session with ``ending``; roll it back, and return false, if that is stale.

        :raises OutboxUnavailable: if the database was busy, or went away.
        """
        record = partial(self._store.record, envelope, ending)
        done = self.commit_with(lambda within: record(within=within) or None) is not None
        if done:
            self._store.close_parent(envelope, ending)
        return done

    def commit_with(self, write: Callable[[Connection], T | None]) -> T | None:
        """Commit the session with what ``write`` does; roll it back, if that returns None.

        :raises OutboxUnavailable: as above.
        """
        session = self._session()
        try:
            done = write(session.connection())
            if done is not None:
                # What was launched goes along, whether or not anything else was written.
                self._pending(session).written.add(None)
                session.commit()
        except Exception as error:
            known = error if isinstance(error, DBAPIError) else None
            if known is not None and known.connection_invalidated:
                self._pending(session).take()
                session.invalidate()  # A connection that is lost can't be asked to undo.
            else:
                session.rollback()
            if known is not None and (known.connection_invalidated or is_busy(known)):
                raise OutboxUnavailable(f"The app's database is away: {known.orig}") from error
            raise
        if done is None:
            session.rollback()
        return done

    def rollback(self) -> None:
        """Undo what the session has not committed."""
        self._session().rollback()

    @property
    def is_begun_elsewhere(self) -> bool:
        """Whether a savepoint, or ``session.begin()``, says where its transaction ends."""
        session = self._session()
        root = session.get_transaction()
        return session.in_nested_transaction() or (
            root is not None and root.origin is SessionTransactionOrigin.BEGIN
        )

    def _pending(self, session: Session) -> Pending:
        pending: Pending = session.info.setdefault(self._key, Pending())
        return pending

    def _has_written(self, session: Session) -> bool:
        """Tell whether something would be lost without a commit; once so, so until the end."""
        written = self._pending(session).written
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
        if session is not None and session.in_transaction() and changes(statement, context):
            pending = self._pending(session)
            pending.written.add(session.get_nested_transaction())
            pending.locks = True

    def _before_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is not None:
            return
        session.flush()  # It may launch something, and shows whether anything is written.
        pending = self._pending(session)
        # What is debounced would lock what waits, for as long as the app's transaction takes.
        launches = [each for each in pending.all() if each.debounce is None]
        if launches and self._has_written(session):
            self._store.add_within(session.connection(), launches)
            pending.inserted = {envelope.id for envelope in launches}

    def _after_commit(self, session: Session) -> None:
        self._pending(session).committed = innermost(session)

    def _after_rollback(self, session: Session) -> None:
        pending, savepoint = self._pending(session), session.get_nested_transaction()
        pending.rolled_back = innermost(session)
        pending.drop(savepoint)
        pending.locks = pending.locks and savepoint is not None

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        pending = self._pending(session)
        if transaction.nested and pending.rolled_back is transaction:
            pending.drop(transaction)
        elif transaction.nested:
            pending.move(transaction, outer(transaction))
        elif transaction.parent is None:
            self._end(pending, transaction, is_lost=self._has_written(session))

    def _end(self, pending: Pending, root: SessionTransaction, *, is_lost: bool) -> None:
        """Let everything that waited for the end of ``root`` know what became of it."""
        launches, inserted = pending.take(), pending.inserted
        pending.inserted, pending.written, pending.locks = set(), set(), False
        if pending.rolled_back is root:
            return
        if pending.committed is root:
            # Not inserted: if nothing was written, or by root.commit() over an open savepoint.
            if inserted:
                self._sent([each for each in launches if each.id in inserted])
            launches = [each for each in launches if each.id not in inserted]
        elif is_lost:
            for envelope in launches:
                if envelope.parent_id is None:  # Else it goes with that.
                    self._dropped(envelope)
            return
        if launches:
            self._keep(launches)


def _listen(target: Any, method: Callable[..., None]) -> None:
    """Connect ``method`` to the event of its name, for as long as its object lives."""
    listener = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        alive = listener()
        if alive is not None:
            alive(*args)

    event.listen(target, method.__name__.removeprefix("_"), call)
