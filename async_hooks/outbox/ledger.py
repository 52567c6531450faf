"""The ledger: what the launcher, the executor and the relay write into the outbox for one app."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from ..delivery import Addition
from ..envelope import Envelope
from ..host.per_process import PerProcess
from ..relay.process import Ended, InHand, Running
from ..verdict import Verdict
from . import queries as upkeep
from . import store
from .database import Database
from .queries import Orphan, ProcessRow
from .store import Hold, OnDiscard

if TYPE_CHECKING:  # Loads SQLAlchemy's ORM, which only those need who have it loaded already.
    from .session import Joined

#: Characters of an error that are kept.
MAX_ERROR = 2000


class Ledger:
    """``joined`` is there where launches join the app's own transactions."""

    def __init__(
        self,
        name: str,
        database: Database,
        *,
        joined: Joined | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.database = database
        self.joined = joined
        self.now = now
        self._me = PerProcess(lambda: InHand(name), InHand.abandon)

    @property
    def me(self) -> InHand:
        return self._me.get()

    @property
    def is_relaying(self) -> bool:
        """Whether a relay beats in this process."""
        me = self._me.made()
        return me is not None and me.is_beating.is_set()

    # -- launching

    @property
    def joins(self) -> bool:
        return self.joined is not None

    def join(self, addition: Addition) -> None:
        """Keep ``addition`` when the app's session commits."""
        assert self.joined is not None  # noqa: S101 - asked for by ``joins``
        self.joined.add(addition)

    def flush(self, *, is_last: bool = False) -> None:
        """Keep what this request launched without writing anything."""
        if self.joined is not None:
            self.joined.flush(is_last=is_last)

    def add(self, additions: Collection[Addition], *, lease: str | None = None) -> dict[str, str]:
        """Keep ``additions``, claimed already if there is a lease.

        Return the winners' ids for those whose unique key was taken.

        :raises OutboxUnavailable: if they can't be kept.
        """
        now = self.now()
        hold = Hold(self.me.relay_id, lease) if lease is not None else None
        first = next(iter(additions))
        if len(additions) == 1 and first.terms.unique_key is None:
            self._insert(store.row_of(first, now, hold))
            lost: dict[str, str] = {}
        else:
            lost = self.database.write(
                lambda connection: store.add(connection, additions, now=now, hold=hold),
                repeatable=True,
            )
        if lease is not None:
            self.me.note_added(first.envelope.id)
        return lost

    def _insert(self, row: dict[str, Any]) -> None:
        insert = store.INSERT[self.database.engine.dialect.name]
        self.database.change(insert, row, repeatable=True)

    def unfinished(self, unique_key: str) -> str | None:
        """Return the id of the unfinished delivery that has ``unique_key``."""
        waiting = self.joined.waiting(unique_key) if self.joined is not None else None
        if waiting is not None:
            return waiting
        connection = self.joined.locking_connection() if self.joined is not None else None
        if connection is not None:
            self.database.prepare_within(connection)
            return store.unfinished(connection, unique_key)
        return self.database.read(lambda connection: store.unfinished(connection, unique_key))

    # -- running

    def begin(self, envelope: Envelope) -> bool:
        """Begin the attempt in this process; false if it is stale, or began before.

        :raises OutboxUnavailable: if nobody can tell.
        """
        me = self.me
        key = me.key(envelope)
        if key in me.running:  # Somebody repeats the POST.
            return False
        relay = me.relay_id if me.is_beating.is_set() else None
        me.running[key] = Running(envelope, time.monotonic())
        try:
            values = store.begun(envelope, relay=relay, now=self.now())
            begun = self.database.change(store.BEGIN, values) == 1
        except BaseException:
            del me.running[key]
            raise
        if not begun:
            del me.running[key]
        return begun

    def complete(
        self, envelope: Envelope, result: str | None, additions: Collection[Addition] = ()
    ) -> bool:
        """Write that the attempt succeeded, with what the app's session has written if joined.

        :raises OutboxUnavailable: if it can't be written.
        """

        def body(connection: Connection) -> bool:
            return store.complete(
                connection, envelope, result=result, additions=additions, now=self.now()
            )

        if self.joined is not None:
            return self.joined.complete(body)
        if store.is_simple(envelope, additions):
            values = store.completed(envelope, result=result, now=self.now())
            return self.database.change(store.COMPLETE, values) == 1
        return self.database.write(body)

    def complete_alone(self, envelope: Envelope) -> bool:
        """Write that the attempt succeeded, whose own process could not."""
        return self.database.write(
            lambda connection: store.complete(connection, envelope, result=None, now=self.now())
        )

    def end(self, envelope: Envelope, verdict: Verdict) -> None:
        """Note that the run is over, whatever became of it."""
        me = self.me
        key = me.key(envelope)
        if not verdict.is_recorded:
            me.ended[key] = Ended(envelope, verdict)
        me.running.pop(key, None)

    # -- relaying

    def claim(
        self,
        lease: str,
        kinds: Collection[tuple[str, str]],
        limit: int,
        queues: Sequence[str] | None = None,
    ) -> tuple[list[Envelope], float | None]:
        """Claim up to ``limit``; return them, and in how many seconds the next is due.

        Nothing is locked as long as nothing is due.
        """
        now = self.now()
        waiting = self.database.read_directly(store.queue_heads)
        later = min((lane.due_at for lane in waiting if lane.due_at > now), default=None)
        claimed: list[Envelope] = []
        if any(lane.due_at <= now for lane in waiting):
            hold = Hold(self.me.relay_id, lease)
            claimed = self.database.write_directly(
                lambda connection: store.claim(
                    connection,
                    hold,
                    kinds=kinds,
                    limit=limit,
                    now=now,
                    queues=queues,
                    known=waiting,
                )
            )
        return claimed, None if later is None else later - now

    def make_due(self) -> int:
        """Make due what was due already, before the clock was set back."""
        now = self.now()
        return self.database.write(lambda connection: store.make_due(connection, now=now))

    def paused(self) -> list[str]:
        return self.database.read_directly(store.paused)

    def give_back(
        self, envelopes: Collection[Envelope], *, begun: bool = False, after: float | None = None
    ) -> int:
        """Let them be claimed again, ``after`` so many seconds; return how many still were ours."""

        run_at = None if after is None else self.now() + after

        def body(connection: Connection) -> int:
            return sum(
                store.give_back(connection, envelope, begun=begun, run_at=run_at)
                for envelope in envelopes
            )

        return self.database.write(body)

    def holder(self, envelope: Envelope) -> str | None:
        """Return which relay's process runs the attempt, that began; None if it is over."""
        return self.database.read(lambda connection: store.holder(connection, envelope))

    def collect_results(self, parent_id: str) -> dict[str, Any] | None:
        """Return the results of all receivers of a fan-out, once, when all are completed."""
        return self.database.write(lambda connection: store.collect_results(connection, parent_id))

    def counters(self, envelope: Envelope) -> tuple[int, int] | None:
        """Return the failures and the crashes before this attempt; None if it is stale."""
        return self.database.read(lambda connection: store.counters(connection, envelope))

    def fail(
        self,
        envelope: Envelope,
        error: str,
        run_at: float | None,
        *,
        crashed: bool = False,
        on_discard: OnDiscard | None = None,
    ) -> bool:
        """End the attempt, to be tried again at ``run_at`` or discarded; false if it is stale."""
        return self.database.write(
            lambda connection: store.fail(
                connection,
                envelope,
                error[:MAX_ERROR],
                run_at,
                crashed=crashed,
                on_discard=on_discard,
                now=self.now(),
            )
        )

    def heartbeat(
        self, problem: str | None, *, name: str = "", queues: Sequence[str] = ()
    ) -> list[ProcessRow]:
        """Show that this process lives; return the others that have not signed off."""
        me = self.me
        return self.database.write(
            lambda connection: upkeep.heartbeat(
                connection,
                me.relay_id,
                host=os.uname().nodename,
                pid=me.pid,
                host_id=me.liveness.host_id,
                problem=problem,
                now=self.now(),
                name=name,
                queues=queues,
            )
        )

    def claimed_by(self, relay: str) -> list[Orphan]:
        return self.database.read(lambda connection: upkeep.claimed_by(connection, relay))

    def deregister(self, relay: str) -> None:
        self.database.write(
            lambda connection: upkeep.deregister(connection, relay), repeatable=True
        )

    def purge(self, before: float) -> int:
        return self.database.write(lambda connection: upkeep.purge(connection, before=before))
