"""The store: a delivery's way through the table, each step a short transaction.

Whoever executes a delivery holds it by its *lease*, a text that no other claim has. Every write
of an attempt names the id, the attempt and the lease, and changes nothing unless all three still
hold. ``attempts`` counts the attempts that began: a delivery claimed for attempt 3 has 2 until
the endpoint begins it, so "begun" and "not begun" can be told apart, whoever died.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection as CoreConnection

from ..delivery import FINAL, Claim, DeliveryState, Ending
from ..envelope import Envelope
from ..errors import AsyncHooksError, DataError
from . import attempts, claiming, groups, results
from .keys.debouncing import MergeOf, debounce
from .rows import INSERT, TRIES, add, envelope_of, holder_of, row_of
from .running import RunningAttempts
from .sql.connections import Connection
from .sql.database import Database
from .waiting import due_kinds

T = TypeVar("T")

#: Seconds that a row which can't be read is left alone.
_ASIDE = 60.0


class Store(RunningAttempts):
    """The deliveries of one app. ``audiences`` names it: the first is written, all are read.

    :raises OutboxUnavailable: from each method, if the database can't be used.
    """

    def __init__(
        self,
        database: Database,
        audiences: Sequence[str],
        *,
        now: Callable[[], float] = time.time,
        added: Callable[[], object] = lambda: None,
        merge_of: MergeOf = lambda envelope: None,
    ) -> None:
        """``added`` is called when the end of a group has added what tells of it.

        ``merge_of`` returns what merges the data of a launch into one that waits, if anything does.
        """
        super().__init__(database, audiences, now)
        self._added = added
        self._merge_of = merge_of
        self._looked_up_to: dict[str, Sequence[Any]] = {}

    # -- adding

    def add(self, envelopes: Sequence[Envelope]) -> dict[str, str]:
        """Add ``envelopes``.

        Return, for each whose unique key another delivery has, the id of that one instead.
        """
        if any(each.debounce is not None for each in envelopes):
            return self._add_debounced(envelopes)
        now = self.now()
        if len(envelopes) == 1 and envelopes[0].unique_key is None:
            row = row_of(envelopes[0], audience=self.audiences[0], now=now)
            self.database.execute(INSERT, row, repeatable=True, urgent=True)
            return {}
        rows = self._rows(envelopes, now)
        return self.database.transaction(
            lambda c: add(c, rows, self.audiences[1:]), repeatable=True, urgent=True
        )

    def _add_debounced(self, envelopes: Sequence[Envelope]) -> dict[str, str]:
        """Add what is debounced one by one, each in a transaction of its own, and the others."""
        others = [each for each in envelopes if each.debounce is None]
        lost = self.add(others) if others else {}
        for envelope in envelopes:
            if envelope.debounce is not None:
                row = row_of(envelope, audience=self.audiences[0], now=self.now())
                holder = debounce(self.database, row, envelope, self._merge_of(envelope))
                if holder != envelope.id:
                    lost[envelope.id] = holder
        return lost

    def add_within(self, connection: CoreConnection, envelopes: Sequence[Envelope]) -> None:
        """Add ``envelopes`` in the transaction of an app's ``connection``."""
        within = self.database.within(connection)
        # On this connection, because the app's pool may have no other to spare.
        self.database.clock.compare(lambda statement: within.execute(statement).one())
        add(within, self._rows(envelopes, self.now()), self.audiences[1:])

    def unfinished(self, unique_key: str, within: CoreConnection | None = None) -> str | None:
        """Return the id of the delivery that has ``unique_key``."""
        now = self.now()
        if within is not None:
            return holder_of(self.database.within(within), unique_key, self.audiences, now)
        return self.database.read(
            lambda c: holder_of(c, unique_key, self.audiences, now), urgent=True
        )

    # -- claiming

    def claim(
        self,
        claim: Claim,
        kinds: Collection[tuple[str, str]],
        limit: int,
        queues: Sequence[str] | None = None,
    ) -> tuple[list[Envelope], float | None]:
        """Claim up to ``limit`` due deliveries; return them, and the seconds until the next is due.

        Only those of the ``kinds``, (task, receiver), that are known, in order of priority,
        ``run_at`` and id; of ``queues``, in that order, if they are named. Paused queues are left
        alone, and nothing is locked as long as nothing is due.
        """
        now = self.now()
        heads = claiming.queue_heads(self.database, self.audiences)
        ranks, later = claiming.due(heads, now, queues)
        envelopes: list[Envelope] = []
        rows = claiming.claim(
            self.database, self.audiences, claim, ranks, frozenset(kinds), limit, now
        )
        for row in rows:
            envelope, problem = envelope_of(row, lease=claim.lease, attempt=row.attempts + 1)
            if problem is None:
                envelopes.append(envelope)
            else:  # Other code may be able to, in a while.
                error = f"This code can't read the row: {problem}"
                available = DeliveryState.AVAILABLE
                self.record(envelope, Ending(available, now + _ASIDE, error, unused=True))
        return envelopes, None if later is None else later - now

    def due_kinds(self) -> set[tuple[str, str]]:
        """Return the (task, receiver) of what is due first in each queue, known or not."""
        return due_kinds(self.database, self.audiences, self.now())

    def make_due(self) -> int:
        """Make due what was due already, before the clock was set back."""
        return self.database.execute(claiming.make_due(self.audiences, self.now())).rowcount

    # -- an attempt

    def begin(self, envelope: Envelope, process_id: str | None) -> bool:
        """Begin the attempt, once; return false if it is stale, or began before.

        From now on it lives as long as the process ``process_id``, which executes it; None where
        nobody could see that one die.
        """
        values = {"number": envelope.attempt, "at": self.now(), "executor": process_id}
        values |= attempts.fence_of(envelope, envelope.attempt - 1)
        return self.database.execute(attempts.BEGIN, values).rowcount == 1

    def record(
        self, envelope: Envelope, ending: Ending, within: CoreConnection | None = None
    ) -> bool:
        """Write what became of the attempt; return false if it is stale.

        ``within`` is a connection of the app's, in whose transaction it is written; once that is
        committed, :meth:`close_parent` is to be called.
        """
        now = self.now()
        additions = self._rows(ending.additions, now)
        values = attempts.ended(envelope, ending, now)

        def body(connection: Connection) -> bool:
            return attempts.record(connection, envelope, ending, values, additions)

        if within is not None:
            return body(self.database.within(within))
        if attempts.takes_key(envelope, ending):
            done = self._taking_keys(lambda c: body(c) and self._take_key(c, envelope, now))
        elif additions or ending.body is not None:
            done = self.database.transaction(body)
        else:
            done = self.database.execute(attempts.RECORD, values).rowcount == 1
        if done:
            self.close_parent(envelope, ending)
        return done

    def close_parent(self, envelope: Envelope, ending: Ending) -> None:
        """Close the group of ``envelope`` if it was the last; what can't be done now, is later."""
        if envelope.parent_id is None or ending.state not in FINAL:
            return
        with suppress(AsyncHooksError):
            self.close(envelope.parent_id)

    def close(self, parent_id: str) -> None:
        """Close a group if none of its deliveries is unfinished."""
        if groups.close(self.database, parent_id, now=self.now):
            self._added()

    def close_all(self) -> None:
        """Close the groups that nobody closed whose last delivery has ended: of some, in turn."""
        for audience in self.audiences:
            after = self._looked_up_to.get(audience, groups.FIRST)
            found, self._looked_up_to[audience] = groups.closable(self.database, audience, after)
            for parent_id in found:
                self.close(parent_id)

    def release(self, envelopes: Collection[Envelope], *, after: float | None = None) -> int:
        """Let others claim what has not begun, in ``after`` seconds; return how many it was.

        An attempt that began meanwhile is left alone.
        """
        now = self.now()
        run_at = None if after is None else now + after
        ending = Ending(DeliveryState.AVAILABLE, run_at=run_at, unused=True)
        ends = [
            (each, attempts.ended(each, ending, now, may_have_begun=False)) for each in envelopes
        ]

        def body(connection: Connection) -> int:
            count = 0
            for each, values in ends:
                if connection.execute(attempts.RECORD, values).rowcount:
                    count += 1
                    if attempts.takes_key(each, ending):
                        self._take_key(connection, each, now)
            return count

        return self._taking_keys(body)

    def _take_key(self, connection: Connection, envelope: Envelope, now: float) -> bool:
        attempts.take_key(connection, envelope, self.audiences, now)
        return True

    def _taking_keys(self, body: Callable[[Connection], T]) -> T:
        """Return what ``body`` returns, which may take a unique key as somebody else does."""
        for _ in range(TRIES - 1):
            with suppress(DataError):
                return self.database.transaction(body)
        return self.database.transaction(body)

    def result_of(self, delivery_id: str) -> Any:
        """Return what ``finish`` is told of a launch."""
        return results.result_of(self.database, delivery_id)
