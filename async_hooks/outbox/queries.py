"""What operators ask of the deliveries of an app, and what they change: sets of rows, in steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select

from ..delivery import SHOWN, UNFINISHED, DeliveryState
from ..validation import checked, seconds_or_zero
from . import families, groups, purging
from .checkpoints import WITH_SHOWN
from .claiming import paused, queue_heads
from .pauses import pause, resume
from .processes import BATCH
from .rows import shown_state
from .sql.connections import Connection
from .sql.database import Database
from .sql.schema import deliveries

_d = deliveries.c
#: What executes is left alone, and what waits for its children, which may be a moment old.
_RETRIABLE = [
    state.value
    for state in DeliveryState
    if state not in (DeliveryState.EXECUTING, DeliveryState.WAITING)
]


class Queries:
    """``audiences`` are the names of the app whose deliveries these are.

    ``states`` are as users see them; ``equal`` may name a ``task``, a ``queue``, a ``ref`` and a
    ``parent_id``.
    """

    def __init__(
        self, database: Database, audiences: Sequence[str], now: Callable[[], float]
    ) -> None:
        self._database = database
        self._audiences = list(audiences)
        self._now = now

    # -- looking

    def rows(
        self,
        limit: int | None = None,
        *,
        ids: Collection[str] | None = None,
        states: Collection[str] | None = None,
        root: str | None = None,
        **equal: str | None,
    ) -> list[Any]:
        """Return rows, the newest first; of a ``root``, its children and what tells of its end."""
        where = self._where(equal, ids=ids, states=states, root=root)
        those = WITH_SHOWN.where(where).order_by(_d.id.desc()).limit(limit)
        return self._database.execute(those).rows

    def count(self, states: Collection[str], **equal: str | None) -> int:
        """Return how many deliveries all of these fit."""
        return self._count(self._where(equal, states=states))

    def counts(self) -> dict[str, int]:
        """Return how many deliveries are in each of the six states."""
        query = select(_d.state, func.count()).where(self._is_ours()).group_by(_d.state)
        counts = {str(state): 0 for state in SHOWN}
        for state, number in self._database.execute(query).rows:
            counts[str(shown_state(state))] += number
        return counts

    def unfinished(self) -> list[tuple[str, str, int, float]]:
        """Return task, receiver, how many are unfinished, and when the first of them is due."""
        query = (
            select(_d.task, _d.receiver, func.count(), func.min(_d.run_at))
            .where(self._where(states=UNFINISHED))
            .group_by(_d.task, _d.receiver)
            .order_by(_d.task, _d.receiver)
        )
        return [tuple(row) for row in self._database.execute(query).rows]

    def oldest_due(self) -> float | None:
        """Return since when the longest waiting one is due, in queues that are not paused."""
        closed, now = self.paused(), self._now()
        heads = queue_heads(self._database, self._audiences)
        due = [head.due_at for head in heads if head.queue not in closed and head.due_at <= now]
        return min(due, default=None)

    def paused(self) -> list[str]:
        """Return the queues that are paused."""
        return paused(self._database, self._audiences)

    # -- changing

    def retrying(self, states: Collection[str], **equal: str | None) -> Iterator[int]:
        """Retry those that all of these fit, in short transactions; return how many each retried.

        The running processes take them up at their next look. What executes is left alone.
        """
        those = [state.value for state in _shown_as(states) if state.value in _RETRIABLE]
        where = self._where(equal, states=those)
        return self._in_batches(where, lambda ids: self.retry_batch(ids, those))

    def retry_batch(self, ids: Collection[str], states: Collection[str] = _RETRIABLE) -> int:
        """Retry those of ``ids`` that are in one of ``states``; return how many it was."""
        return self._database.transaction(
            lambda c: families.retry(c, ids, states, self._is_ours(by=ids), self._now())
        )

    def cancel(self, delivery_id: str) -> bool:
        """End a delivery and its children; false if they had finished.

        An attempt that runs can't be stopped; its result is ignored.
        """
        return bool(self.cancel_batch([delivery_id]))

    def cancelling(self, states: Collection[str], **equal: str | None) -> Iterator[int]:
        """Cancel those that all of these fit, in short transactions; return how many each ended."""
        where = self._where(equal, states=states)
        return self._in_batches(where, lambda ids: len(self.cancel_batch(ids)))

    def cancel_batch(self, ids: Collection[str]) -> list[Any]:
        """End those of ``ids``, and their children, whatever they do now; return their rows."""
        ended, parents = self._database.transaction(
            lambda c: families.cancel(c, ids, self._is_ours(by=ids), self._now())
        )
        for parent_id in parents:
            groups.close(self._database, parent_id, now=self._now)
        return ended

    def pause_delivery(self, delivery_id: str) -> bool:
        """Let no attempt of a delivery begin until it is resumed; of a group, of none of its parts.

        Return false if there is nothing to pause. An attempt that runs goes on.
        """
        return self._change(families.pause, delivery_id) > 0

    def resume_delivery(self, delivery_id: str) -> bool:
        """Let a paused delivery, or the parts of a group, begin again; false if none is paused."""
        return self._change(families.resume, delivery_id) > 0

    def _change(
        self,
        change: Callable[[Connection, str, ColumnElement[bool]], int],
        delivery_id: str,
    ) -> int:
        ours = self._is_ours(by=delivery_id)
        return self._database.transaction(lambda c: change(c, delivery_id, ours))

    def purge(self, older_than: float | timedelta) -> int:
        """Delete what finished longer ago than ``older_than`` (seconds); return how many."""
        return sum(self.purging(older_than))

    def purging(self, older_than: float | timedelta) -> Iterator[int]:
        """Do the same in short transactions, and return how many each deleted."""
        after: float | None = 0.0
        while after is not None:
            number, after = self.purge_page(older_than, after)
            if number:
                yield number

    def purge_page(
        self, older_than: float | timedelta, after: float = 0.0
    ) -> tuple[int, float | None]:
        """Delete what may go of the next that finished ``after`` a time; return how many.

        And after which time to go on, None at the end: what has to stay, because its family is
        unfinished, is looked at page by page, and not under a lock.
        """
        limit = self._limit(older_than)
        return purging.page(self._database, self._is_ours(), limit, self._now(), after)

    def purgeable(self, older_than: float | timedelta) -> int:
        """Return how many a purge would delete."""
        return self._count(self._finished(older_than))

    def pause(self, queue: str) -> bool:
        """Let no process take more of ``queue``, until it is resumed; false if it was paused.

        What a process has claimed already still begins.
        """
        return pause(self._database, self._audiences, queue, self._now())

    def resume(self, queue: str) -> bool:
        """Let what waits in ``queue`` begin again; false if it was not paused."""
        return resume(self._database, self._audiences, queue)

    # -- which

    def _is_ours(self, *, by: object = None) -> ColumnElement[bool]:
        """Return what holds for our rows; for those that are found ``by`` something else, too."""
        # SQLite prefers an index by the audience to all others, and would read all our rows.
        audience = _d.audience if by is None else _d.audience.concat("")
        return audience.in_(self._audiences)

    def _where(
        self,
        equal: Mapping[str, str | None] | None = None,
        *,
        ids: Collection[str] | None = None,
        states: Collection[str] | None = None,
        root: str | None = None,
    ) -> ColumnElement[bool]:
        equal = {name: value for name, value in (equal or {}).items() if value is not None}
        wanted = [_d[name] == value for name, value in equal.items()]
        if root is not None:
            wanted.append(or_(_d.parent_id == root, _d.root_id == root))
        if ids is not None:
            wanted.append(_d.id.in_(ids))
        if states is not None:
            wanted.append(_d.state.in_(_shown_as(states)))
        by = root or equal.get("parent_id") or equal.get("ref")
        return and_(self._is_ours(by=by), *wanted)

    def _finished(self, older_than: float | timedelta) -> ColumnElement[bool]:
        """Return what a purge deletes."""
        is_purgeable = purging.is_purgeable(self._limit(older_than), self._now())
        return and_(self._is_ours(), is_purgeable)

    def _limit(self, older_than: float | timedelta) -> float:
        return self._now() - checked(seconds_or_zero, older_than, "older_than")

    def _count(self, where: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(deliveries).where(where)
        return int(self._database.execute(query).rows[0][0])

    def _in_batches(
        self, where: ColumnElement[bool], change: Callable[[list[str]], int]
    ) -> Iterator[int]:
        """Apply ``change`` to the ids of all these in short steps; return what each changed."""
        after = ""
        while True:
            query = select(_d.id).where(where, _d.id > after).order_by(_d.id).limit(BATCH)
            ids = [row.id for row in self._database.execute(query).rows]
            if not ids:
                return
            yield change(ids)
            after = ids[-1]


def _shown_as(states: Collection[str]) -> list[DeliveryState]:
    """Return the states that users see as one of ``states``."""
    return [state for state in DeliveryState if state.shown in states]
