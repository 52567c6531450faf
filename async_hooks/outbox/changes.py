"""What operators change by ``hooks.outbox``, told to listeners and to the relays."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from flask import Flask
from sqlalchemy import and_, delete, or_, select, update

from ..delivery import UNFINISHED, DeliveryState
from ..signals import queue_paused, queue_resumed, send_in_context, task_cancelled
from ..state import state_of
from ..validation import checked, moment
from .queries import Queries
from .rows import envelope_of
from .sql.connections import Connection
from .sql.database import Database
from .sql.schema import deliveries, progress

_d = deliveries.c


class Changes(Queries):
    """The deliveries of ``app``, and what is done to them by name."""

    def __init__(
        self, app: Flask, database: Database, audiences: Sequence[str], now: Callable[[], float]
    ) -> None:
        super().__init__(database, audiences, now)
        self._app = app

    def retry(self, delivery_id: str) -> bool:
        """Make a delivery due now and reset its attempts; false if it executes or is gone.

        Of a fan-out, that means its children that did not succeed. Once they have come to an end
        again, ``finish`` is called again.
        """
        done = self.retry_batch([delivery_id])
        self._wake()
        return done > 0

    def cancel(self, delivery_id: str) -> bool:
        """End a delivery and its children; false if they had finished.

        An attempt that runs can't be stopped; its result is ignored.
        """
        done = super().cancel(delivery_id)
        self._wake()  # The end of a group may have to be told.
        return done

    def resume_delivery(self, delivery_id: str) -> bool:
        """Let a paused delivery, or the parts of a group, begin again; false if none is paused."""
        done = super().resume_delivery(delivery_id)
        self._wake()
        return done

    def cancel_batch(self, ids: Collection[str]) -> list[Any]:
        """Do as :class:`.Queries` does, and tell of each that ended."""
        ended = super().cancel_batch(ids)
        for row in ended:
            envelope, _ = envelope_of(row, lease=None, attempt=row.attempts)
            send_in_context(task_cancelled, self._app, envelope=envelope)
        return ended

    def reschedule(self, delivery_id: str, run_at: datetime) -> bool:
        """Let a delivery that waits run at ``run_at``, an aware datetime, instead.

        False if it executes, waits for its children, has finished or is gone. Its attempts stay as
        they are; :meth:`retry` resets them, also of one that finished.

        :raises ConfigError: if ``run_at`` is no such time, at most ten years from now.
        """
        at = checked(moment, run_at, "run_at").timestamp()
        waits = _d.state.in_([DeliveryState.AVAILABLE, DeliveryState.HELD])
        later = update(deliveries).where(self._is_ours(), _d.id == delivery_id, waits)
        done = self._database.execute(later.values(run_at=at), repeatable=True).rowcount > 0
        if done:
            self._wake()
        return done

    def delete(self, delivery_id: str) -> bool:
        """Delete a delivery that finished, with its children and what told of its end.

        False if there is none, or if it, its children, what tells of its end or other parts of its
        fan-out are unfinished: then :meth:`cancel` it, or the whole by its ``parent_id``, first.
        """
        found = and_(self._is_ours(), _d.id == delivery_id)
        own = select(_d.parent_id).where(found)

        def body(connection: Connection) -> bool:
            row = connection.execute(own).one()
            if row is None:
                return False
            family = [delivery_id, *([row.parent_id] if row.parent_id else [])]
            # Whoever adds a child, or closes its parent, locks that one first.
            lock = select(_d.id).where(_d.id.in_(family)).order_by(_d.id)
            connection.execute(lock.with_for_update())
            of_family = or_(_d.id.in_(family), _d.parent_id.in_(family), _d.root_id.in_(family))
            unfinished = select(_d.id).where(of_family, _d.state.in_(UNFINISHED)).limit(1)
            if connection.execute(unfinished.with_for_update(read=True)).rows:
                return False
            all_of_it = or_(found, _d.parent_id == delivery_id, _d.root_id == delivery_id)
            ids = select(_d.id).where(all_of_it)
            connection.execute(delete(progress).where(progress.c.id.in_(ids)))
            return connection.execute(delete(deliveries).where(all_of_it)).rowcount > 0

        return self._database.transaction(body)

    def pause(self, queue: str) -> bool:
        """Let no process take more of ``queue``, until it is resumed; false if it was paused.

        What a process has claimed already still begins.
        """
        was_open = super().pause(queue)
        if was_open:
            send_in_context(queue_paused, self._app, queue=queue)
        return was_open

    def resume(self, queue: str) -> bool:
        """Let what waits in ``queue`` begin again; false if it was not paused."""
        was_paused = super().resume(queue)
        if was_paused:
            send_in_context(queue_resumed, self._app, queue=queue)
            self._wake()
        return was_paused

    def _wake(self) -> None:
        state = state_of(self._app)
        process = state.process.get(os.getpid())
        if state.relay is not None and process is not None and process.is_registered.is_set():
            state.relay.wake()  # A command does not begin to relay.
