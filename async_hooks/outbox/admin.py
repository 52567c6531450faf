"""``hooks.outbox``: to look after what waits, runs and has finished."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask
from sqlalchemy import exc

from ..delivery import FINAL, Delivery, DeliveryState
from ..envelope import Envelope
from ..errors import OutboxUnavailable
from ..host.liveness import has_ended
from ..receivers import kinds_of, options_of
from ..state import state_of
from ..validation import seconds, seconds_or_zero
from . import queries as upkeep
from . import schema, store
from .ledger import Ledger
from .queries import ProcessRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """``oldest_due`` is since how long the longest waiting delivery is due, None if none is.

    ``relays`` are the processes that relay, with what keeps each from it, if anything does.
    """

    ok: bool
    oldest_due: timedelta | None
    relays: list[RelaySeen]
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySeen:
    """A process that relays, as it was last seen, and what it executes, by id.

    ``name`` and ``queues`` are a worker's; a web process has no name. No queues means all.
    """

    id: str
    name: str
    queues: list[str]
    deliveries: list[str]
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    is_alive: bool
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """So many unfinished deliveries of one task and receiver; unknown ones wait for their code."""

    task: str
    receiver: str | None
    count: int
    due_at: datetime
    is_known: bool


class Outbox:
    """The deliveries of one app. Every method reads or writes the database at once.

    :raises OutboxUnavailable: from each, if that can't be used.
    """

    def __init__(self, app: Flask, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger

    def get(self, delivery_id: str) -> Delivery | None:
        """Return the delivery of this id, None if there is none (any more)."""
        found = self._ledger.database.read(lambda c: upkeep.find(c, ids=[delivery_id], limit=1))
        return self._delivery(found[0]) if found else None

    def find(
        self,
        *,
        ref: str | None = None,
        state: str | None = None,
        task: str | None = None,
        queue: str | None = None,
        limit: int | None = 100,
    ) -> list[Delivery]:
        """Return the deliveries that all of these fit, newest first."""
        state = DeliveryState(state) if state is not None else None
        rows = self._ledger.database.read(
            lambda c: upkeep.find(c, ref=ref, state=state, task=task, queue=queue, limit=limit)
        )
        return [self._delivery(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many deliveries are in each of the five states."""
        found = self._ledger.database.read(upkeep.counts)
        return {str(state): found.get(state, 0) for state in DeliveryState}

    def retry(self, delivery_id: str) -> bool:
        """Make a delivery due now, with all attempts before it; false if it executes or is gone.

        Of a fan-out, that means its children that did not succeed.
        """
        now = self._ledger.now()
        done = self._ledger.database.write(lambda c: upkeep.retry(c, delivery_id, now=now))
        self._wake()
        return done > 0

    def cancel(self, delivery_id: str) -> bool:
        """End a delivery and its children; false if they had finished.

        An attempt that runs can't be stopped; what it says no longer counts.
        """
        now = self._ledger.now()
        return self._ledger.database.write(lambda c: upkeep.cancel(c, delivery_id, now=now))

    def count(
        self, states: Collection[str], *, task: str | None = None, queue: str | None = None
    ) -> int:
        """Return how many deliveries all of these fit."""
        return self._ledger.database.read(lambda c: upkeep.count(c, states, task=task, queue=queue))

    def retrying(
        self, states: Collection[str], *, task: str | None = None, queue: str | None = None
    ) -> Iterator[int]:
        """Retry those that all of these fit, in short transactions; return how many each retried.

        The running processes take them up at their next look. What executes is left alone.
        """
        states = [state for state in states if state != DeliveryState.EXECUTING]
        for ids in self._batches(states, task, queue):
            now = self._ledger.now()
            yield self._ledger.database.write(
                lambda c, ids=ids, now=now: upkeep.retry_each(  # type: ignore[misc]
                    c, ids, states, now=now
                )
            )

    def cancelling(
        self, states: Collection[str], *, task: str | None = None, queue: str | None = None
    ) -> Iterator[int]:
        """Cancel those that all of these fit, in short transactions; return how many each ended."""
        for ids in self._batches(states, task, queue):
            now = self._ledger.now()
            yield self._ledger.database.write(
                lambda c, ids=ids, now=now: sum(  # type: ignore[misc]
                    upkeep.cancel(c, delivery_id, now=now) for delivery_id in ids
                )
            )

    def _batches(
        self, states: Collection[str], task: str | None, queue: str | None
    ) -> Iterator[list[str]]:
        after = ""
        while ids := self._ledger.database.read(
            lambda c, after=after: upkeep.ids_of(  # type: ignore[misc]
                c, states, task=task, queue=queue, after=after
            )
        ):
            yield ids
            after = ids[-1]

    def pause(self, queue: str) -> None:
        """Let no process take more of ``queue``, until it is resumed.

        What a process has taken already, some seconds' work at most, still begins.
        """
        now = self._ledger.now()
        self._ledger.database.write(lambda c: upkeep.pause(c, queue, now=now))

    def resume(self, queue: str) -> None:
        self._ledger.database.write(lambda c: upkeep.resume(c, queue))
        self._wake()

    def paused(self) -> list[str]:
        """Return the queues that are paused."""
        return self._ledger.database.read(store.paused)

    def purge(self, older_than: float | timedelta) -> int:
        """Delete what finished longer ago than ``older_than`` (seconds); return how many."""
        return sum(self.purging(older_than))

    def purging(self, older_than: float | timedelta) -> Iterable[int]:
        """Do the same in short transactions, and return how many each deleted."""
        before = self._ledger.now() - seconds_or_zero(older_than)
        while True:
            number = self._ledger.purge(before)
            yield number
            if number < upkeep.BATCH:
                return

    def purgeable(self, older_than: float | timedelta) -> int:
        """Return how many a purge would delete."""
        before = self._ledger.now() - seconds_or_zero(older_than)
        return self._ledger.database.read(lambda c: upkeep.count_old(c, before=before))

    def migrate(self) -> tuple[int, int]:
        """Make the tables, or bring them up to date; return the versions before and after."""
        return self._ledger.database.migrate(), schema.VERSION

    def check_tables(self) -> bool:
        """Tell whether the tables are there. None are made; SQLite's are at their first use.

        :raises OutboxUnavailable: if this code can't use them as they are.
        """
        engine = self._ledger.database.engine
        try:
            with engine.connect() as connection:
                found = schema.version_of(connection)
        except exc.DBAPIError as error:
            url = engine.url.render_as_string(hide_password=True)
            what = str(error.orig).strip().partition("\n")[0]
            raise OutboxUnavailable(f"The outbox ({url}) can't be used: {what}") from error
        makes_itself = found == 0 and engine.dialect.name == "sqlite"
        schema.check_version(found, at_least=0 if makes_itself else schema.VERSION)
        return found > 0

    def why(self, delivery_id: str) -> str:
        """Say in one sentence why the delivery is where it is."""
        delivery = self.get(delivery_id)
        if delivery is None:
            return f"No delivery {delivery_id!r} (it never existed, or has been purged)."
        return self._why(delivery)

    def backlog(self) -> list[Waiting]:
        """Return what is unfinished, by task and receiver."""
        known = kinds_of(state_of(self._app))
        return [
            Waiting(
                task=task,
                receiver=receiver or None,
                count=number,
                due_at=_moment(due),
                is_known=(task, receiver) in known,
            )
            for task, receiver, number, due in self._ledger.database.read(upkeep.backlog)
        ]

    def health(self, *, patience: float | timedelta = 60) -> Health:
        """Tell whether deliveries get away: something relays, and none is due for too long.

        ``patience`` (seconds) says how long is too long.
        """
        now = self._ledger.now()
        due = self._ledger.database.read(lambda c: upkeep.oldest_due(c, now=now))
        late = timedelta(seconds=now - due) if due is not None else None
        relays = self.relays()
        alive = [relay for relay in relays if relay.is_alive]
        problem = cause = next((relay.problem for relay in alive if relay.problem), None)
        if late is not None and not alive:
            problem, cause = "A delivery is due, and no process relays.", "No process relays."
        if late is not None and late.total_seconds() > seconds(patience):
            problem = f"A delivery has been due for {late.total_seconds():.0f} s."
            problem += f" {cause}" if cause is not None else ""
        return Health(ok=problem is None, oldest_due=late, relays=relays, problem=problem)

    def relays(self) -> list[RelaySeen]:
        """Return the processes that relay, or died and were not yet missed."""
        relays = self._ledger.database.read(upkeep.all_relays)
        executing = self._ledger.database.read(upkeep.executing) if relays else {}
        return [self._seen(relay, executing.get(relay.id, [])) for relay in relays]

    def _seen(self, relay: ProcessRow, executing: list[str]) -> RelaySeen:
        lease = state_of(self._app).config.lease
        silent = self._ledger.now() - relay.seen_at > 2 * lease
        ended = has_ended(self._ledger.name, relay.id, relay.host_id)
        return RelaySeen(
            id=relay.id,
            name=relay.name,
            queues=relay.queues.split(),
            deliveries=executing,
            host=relay.host,
            pid=relay.pid,
            started_at=_moment(relay.started_at),
            seen_at=_moment(relay.seen_at),
            is_alive=not silent and not ended,
            problem=relay.problem,
        )

    def _why(self, delivery: Delivery) -> str:
        error = f" The last attempt said: {delivery.error}" if delivery.error else ""
        match delivery.state:
            case DeliveryState.COMPLETED:
                return f"It was completed at {_said(delivery.finished_at)}."
            case DeliveryState.CANCELLED:
                return f"It was cancelled at {_said(delivery.finished_at)}."
            case DeliveryState.DISCARDED:
                tried = f"after {delivery.attempts} attempts"
                return f"It was discarded at {_said(delivery.finished_at)} {tried}.{error}"
            case DeliveryState.EXECUTING:
                return f"Attempt {max(delivery.attempts, 1)} is claimed or runs.{error}"
        return f"{self._why_waiting(delivery)}{error}"

    def _why_waiting(self, delivery: Delivery) -> str:
        if (delivery.task, delivery.receiver or "") not in kinds_of(state_of(self._app)):
            return "It is parked: this code knows no such task or receiver, by name or alias."
        if delivery.queue in self.paused():
            return f"It waits because the queue {delivery.queue!r} is paused."
        now = datetime.fromtimestamp(self._ledger.now(), UTC)
        if delivery.run_at > now:
            return f"It waits for its time, {_said(delivery.run_at)}."
        alive = [relay for relay in self.relays() if relay.is_alive]
        if not alive:
            return "It is due, and no process relays."
        problem = next((relay.problem for relay in alive if relay.problem), None)
        if problem is not None:
            return f"It is due, and the relay has trouble: {problem}"
        return "It is due, and next in line when a relay has room."

    def _delivery(self, row: Any) -> Delivery:
        state = DeliveryState(row.state)
        envelope = Envelope(id=row.id, task=row.task, body=row.body, receiver=row.receiver or None)
        return Delivery(
            id=row.id,
            parent_id=row.parent_id,
            task=row.task,
            receiver=row.receiver or None,
            queue=row.queue,
            priority=row.priority,
            state=state,
            attempts=row.attempts,
            crashes=row.crashes,
            max_attempts=options_of(state_of(self._app), envelope).max_attempts,
            run_at=_moment(row.run_at),
            created_at=_moment(row.created_at),
            finished_at=_moment(row.finished_at) if state in FINAL else None,
            error=row.error,
            result=json.loads(row.result)["result"] if row.result is not None else None,
            data=envelope.data,
            ref=row.ref,
        )

    def _wake(self) -> None:
        if self._ledger.is_relaying:  # A command does not begin to.
            state_of(self._app).relay.wake()


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _said(moment: datetime | None) -> str:
    return moment.isoformat(sep=" ", timespec="seconds") if moment is not None else "?"
