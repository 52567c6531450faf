"""Rescue: showing that this process lives, and taking over from those that do not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from flask import Flask

from ..config import Config
from ..host.per_process import PerProcess
from ..receivers import options_of
from ..state import state_of
from .notes import Notes
from .outcomes import LOST
from .settle import Settler

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.ledger import Ledger
    from ..outbox.queries import Orphan, ProcessRow

#: Beats of our own during which another process may be silent.
MISSED_HEARTBEATS = 3

#: Seconds that a run has beyond its time, before its own process fails it: its sender goes first.
_MARGIN = 2.0

logger = logging.getLogger("async_hooks")


class Other:
    """Another relay, and during how many beats of ours its own has not changed."""

    def __init__(self, seen: ProcessRow) -> None:
        self.seen = seen
        self.missed_heartbeats = 0


class _Sight:
    """What one process sees: the others, what nobody remembers, and what runs for too long."""

    def __init__(self) -> None:
        self.others: dict[str, Other] = {}
        self.missing: set[str] = set()
        self.overdue: set[str | None] = set()


class Rescue:
    """``name`` and ``queues`` are what this process shows of itself."""

    def __init__(
        self,
        app: Flask,
        config: Config,
        ledger: Ledger,
        settler: Settler,
        *,
        name: str,
        queues: Iterable[str],
        wake: Callable[[], None],
    ) -> None:
        self._app = app
        self._config = config
        self._ledger = ledger
        self._settler = settler
        self._name = name
        self._queues = list(queues)
        self._wake = wake
        self._sight = PerProcess(_Sight)

    def maintain(self, notes: Notes, now: float) -> None:
        """Live, and see who does not. ``now`` is the relay's own clock."""
        if now >= notes.heartbeat_at:
            self._heartbeat(notes)
            notes.heartbeat_at = now + self._config.lease / MISSED_HEARTBEATS
        self._rescue_all_dead()
        self._end_watches(notes, now)
        self._check_time()

    def _heartbeat(self, notes: Notes) -> None:
        sight = self._sight.get()
        problem = notes.problem or notes.breaker.problem
        seen = self._ledger.heartbeat(problem, name=self._name, queues=self._queues)
        self._ledger.me.is_beating.set()
        others: dict[str, Other] = {}
        for each in seen:
            known = sight.others.get(each.id)
            if known is not None and known.seen.heartbeat == each.heartbeat:
                known.missed_heartbeats += 1
                others[each.id] = known
            else:
                others[each.id] = Other(each)
        sight.others = others
        self._check_own(notes, sight)

    def _rescue_all_dead(self) -> None:
        others, liveness = self._sight.get().others, self._ledger.me.liveness
        for relay_id, other in list(others.items()):
            is_silent = other.missed_heartbeats >= MISSED_HEARTBEATS
            if (
                is_silent or liveness.has_ended(relay_id, other.seen.host_id)
            ) and self._rescue_dead(relay_id):
                del others[relay_id]

    def _rescue_dead(self, relay_id: str) -> bool:
        """Take over what a dead process held, at most a batch; return whether nothing is left."""
        orphans = self._ledger.claimed_by(relay_id)
        if not orphans:
            self._ledger.deregister(relay_id)
            self._ledger.me.liveness.forget(relay_id)
            return True
        logger.warning("Process %s is gone; %d deliveries go back.", relay_id, len(orphans))
        for orphan in orphans:
            if orphan.has_begun:
                self._settler.record_crash(orphan.envelope)
            else:
                self._ledger.give_back([orphan.envelope])
        self._wake()
        return False

    def _end_watches(self, notes: Notes, now: float) -> None:
        """Settle what was left to its own process, which is done with it or has had its time."""
        for envelope, deadline in list(notes.awaited.values()):
            ended = self._ledger.me.ended_of(envelope)
            if ended is None and now < deadline:
                continue
            del notes.awaited[envelope.id]
            if ended is not None:
                self._settler.record(envelope, ended.verdict)
            else:
                self._settler.fail(envelope, LOST, "Nobody said what became of it.")

    def _check_time(self) -> None:
        """Fail what runs here for too long; its thread goes on, and keeps its place."""
        sight = self._sight.get()
        running = list(self._ledger.me.running.values())
        sight.overdue &= {run.envelope.lease for run in running}
        for envelope, since in running:
            limit = options_of(state_of(self._app), envelope).timeout + _MARGIN
            if time.monotonic() - since > limit and envelope.lease not in sight.overdue:
                sight.overdue.add(envelope.lease)
                error = f"It ran for more than {limit:g} seconds."
                self._settler.fail(envelope, LOST, error)

    def _check_own(self, notes: Notes, sight: _Sight) -> None:
        """Settle what the table says is ours and nobody here remembers."""
        me = self._ledger.me
        ended_before = set(me.ended)
        in_table = self._ledger.claimed_by(me.relay_id)
        missing = {
            orphan.envelope.id: orphan
            for orphan in in_table
            if not me.has_in_hand(orphan.envelope) and orphan.envelope.id not in notes.awaited
        }
        for delivery_id, orphan in missing.items():
            # Seen twice: between a commit and its note here there may be a moment.
            if delivery_id in sight.missing:
                self._settle_forgotten(orphan)
        sight.missing = set(missing)
        known = {me.key(orphan.envelope) for orphan in missing.values()}
        awaited = {me.key(envelope) for envelope, _ in list(notes.awaited.values())}
        for key in ended_before - known - awaited:
            me.ended.pop(key, None)

    def _settle_forgotten(self, orphan: Orphan) -> None:
        """Settle what ran here, or was to run, and whose sender is gone."""
        ended = self._ledger.me.ended_of(orphan.envelope)
        if not orphan.has_begun:
            self._ledger.give_back([orphan.envelope])
        elif ended is not None:
            self._settler.record(ended.envelope, ended.verdict)
        else:
            self._settler.fail(orphan.envelope, LOST, "Nobody said what became of it.")
