"""Rescue: showing that this process lives, and taking over from those that do not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from flask import Flask

from .config import Config
from .notes import Notes
from .processes import PerProcess
from .receivers import timeout_of
from .settlement import UNTOLD
from .settling import Settling
from .state import state_of

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from .outbox.ledger import Ledger
    from .outbox.upkeep import Orphan, Seen

#: Beats of our own during which another process may be silent.
SILENT_BEATS = 3

#: Seconds that a run has beyond its time, before its own process fails it: its sender goes first.
_MARGIN = 2.0

logger = logging.getLogger("async_hooks")


class Other:
    """Another relay, and during how many beats of ours its own has not changed."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.silent_beats = 0


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
        settling: Settling,
        *,
        name: str,
        queues: Iterable[str],
        wake: Callable[[], None],
    ) -> None:
        self._app = app
        self._config = config
        self._ledger = ledger
        self._settling = settling
        self._name = name
        self._queues = list(queues)
        self._wake = wake
        self._sight = PerProcess(_Sight)

    def look_after(self, notes: Notes, now: float) -> None:
        """Live, and see who does not. ``now`` is the relay's own clock."""
        if now >= notes.beat_at:
            self._beat(notes)
            notes.beat_at = now + self._config.lease / SILENT_BEATS
        self._bury_the_dead()
        self._end_watches(notes, now)
        self._check_time()

    def _beat(self, notes: Notes) -> None:
        sight = self._sight.get()
        trouble = notes.trouble or notes.breaker.trouble
        seen = self._ledger.beat(trouble, name=self._name, queues=self._queues)
        self._ledger.me.is_beating.set()
        others: dict[str, Other] = {}
        for each in seen:
            known = sight.others.get(each.id)
            if known is not None and known.seen.beat == each.beat:
                known.silent_beats += 1
                others[each.id] = known
            else:
                others[each.id] = Other(each)
        sight.others = others
        self._check_own(notes, sight)

    def _bury_the_dead(self) -> None:
        others, lifeline = self._sight.get().others, self._ledger.me.lifeline
        for relay_id, other in list(others.items()):
            is_silent = other.silent_beats >= SILENT_BEATS
            if (is_silent or lifeline.has_ended(relay_id, other.seen.place)) and self._bury(
                relay_id
            ):
                del others[relay_id]

    def _bury(self, relay_id: str) -> bool:
        """Take over what a dead process held, at most a batch; return whether nothing is left."""
        orphans = self._ledger.held_by(relay_id)
        if not orphans:
            self._ledger.sign_off(relay_id)
            self._ledger.me.lifeline.forget(relay_id)
            return True
        logger.warning("Process %s is gone; %d deliveries go back.", relay_id, len(orphans))
        for orphan in orphans:
            if orphan.has_begun:
                self._settling.bury(orphan.envelope)
            else:
                self._ledger.give_back([orphan.envelope])
        self._wake()
        return False

    def _end_watches(self, notes: Notes, now: float) -> None:
        """Settle what was left to its own process, which is done with it or has had its time."""
        for envelope, deadline in list(notes.watched.values()):
            ended = self._ledger.me.ended_of(envelope)
            if ended is None and now < deadline:
                continue
            del notes.watched[envelope.id]
            if ended is not None:
                self._settling.settle_once(envelope, ended.verdict)
            else:
                self._settling.fail(envelope, UNTOLD, "Nobody said what became of it.")

    def _check_time(self) -> None:
        """Fail what runs here for too long; its thread goes on, and keeps its place."""
        sight = self._sight.get()
        running = list(self._ledger.me.running.values())
        sight.overdue &= {run.envelope.lease for run in running}
        for envelope, since in running:
            limit = timeout_of(state_of(self._app), envelope) + _MARGIN
            if time.monotonic() - since > limit and envelope.lease not in sight.overdue:
                sight.overdue.add(envelope.lease)
                error = f"It ran for more than {limit:g} seconds."
                self._settling.fail(envelope, UNTOLD, error)

    def _check_own(self, notes: Notes, sight: _Sight) -> None:
        """Settle what the table says is ours and nobody here remembers."""
        me = self._ledger.me
        ended_before = set(me.ended)
        in_table = self._ledger.held_by(me.relay_id)
        missing = {
            orphan.envelope.id: orphan
            for orphan in in_table
            if not me.has_in_hand(orphan.envelope) and orphan.envelope.id not in notes.watched
        }
        for delivery_id, orphan in missing.items():
            # Seen twice: between a commit and its note here there may be a moment.
            if delivery_id in sight.missing:
                self._settle_forgotten(orphan)
        sight.missing = set(missing)
        known = {me.key(orphan.envelope) for orphan in missing.values()}
        watched = {me.key(envelope) for envelope, _ in list(notes.watched.values())}
        for key in ended_before - known - watched:
            me.ended.pop(key, None)

    def _settle_forgotten(self, orphan: Orphan) -> None:
        """Settle what ran here, or was to run, and whose sender is gone."""
        ended = self._ledger.me.ended_of(orphan.envelope)
        if not orphan.has_begun:
            self._ledger.give_back([orphan.envelope])
        elif ended is not None:
            self._settling.settle_once(ended.envelope, ended.verdict)
        else:
            self._settling.fail(orphan.envelope, UNTOLD, "Nobody said what became of it.")
