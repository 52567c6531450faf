"""Maintenance: shows that this process lives, takes over from those that do not, and tidies up."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..envelope import Envelope
from ..receivers import options_of
from ..state import state_of
from ..verdict import Outcome
from .kinds import Kinds
from .outcomes import LOST
from .runs import key_of
from .settle import LONGEST_WAIT, Settler

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.open import Opened
    from ..outbox.processes import ProcessRow

#: Heartbeats of our own during which another process may miss its own.
MISSED_HEARTBEATS = 3

#: Seconds between two looks at all else than what is due, however often it is woken.
_EVERY = 0.2

#: Seconds between two looks for what is old enough to be purged.
_PURGE_EVERY = 60.0

#: Seconds that the wall clock may be set back at once.
_CLOCK_STEP = 1.0

logger = logging.getLogger("async_hooks")


class Maintenance:
    """The care of ``settler``'s process for itself, the others and the table.

    ``name`` and ``queues`` are what it shows of itself.
    """

    def __init__(self, settler: Settler, opened: Opened, name: str, queues: Sequence[str]) -> None:
        #: Whether this process claims.
        self.relays = False
        #: The (task, receiver) that this code knows.
        self.kinds: set[tuple[str, str]] = set()
        self._kinds = Kinds(settler.app, settler.store)
        self._settler = settler
        self._app = settler.app
        self._store = settler.store
        self._process = settler.process
        self._processes = opened.processes
        self._outbox = opened.outbox
        self._config = settler.config
        self._name = name
        self._queues = queues
        #: The other processes, and during how many heartbeats of ours their own did not change.
        self._peers: dict[str, tuple[ProcessRow, int]] = {}
        #: What the table says is ours and nobody here remembers.
        self._missing: set[str] = set()
        self._maintain_at = self._heartbeat_at = self._purge_at = float("-inf")
        #: Up to which end what is old was looked at in this round.
        self._purged_to = 0.0
        #: By how much the wall clock is ahead of the monotonic one, which nobody sets.
        self._clock_ahead = float("inf")

    def maintain(self, now: float) -> bool:
        """Do at times what need not be done for each launch; tell whether more may be due."""
        if now < self._maintain_at:
            return False
        has_released = self.live()
        self.kinds = self._kinds.known(now)
        if stale := self._process.stale(self._process.senders(self._config.concurrency)):
            self._settler.release(stale)
        self._tidy(now)
        self._maintain_at = now + _EVERY
        return has_released

    def live(self) -> bool:
        """Show that this process lives, and see who does not; tell whether that released any."""
        now = self._process.monotonic()
        if now >= self._heartbeat_at:
            self._heartbeat(now)
        has_released = self._rescue_dead()
        self._settle_awaited(now)
        return has_released

    def _heartbeat(self, now: float) -> None:
        process = self._process
        rows = self._processes.heartbeat(
            process.id,
            host=os.uname().nodename,
            pid=process.pid,
            host_id=process.liveness.host_id,
            problem=process.problem or self._lack_of_threads(),
            name=self._name,
            queues=self._queues,
            relays=self.relays,
        )
        # Now, whatever fails below: heartbeats in quick succession let live peers look silent.
        self._heartbeat_at = now + self._config.lease / MISSED_HEARTBEATS
        process.is_registered.set()
        before, self._peers = self._peers, {}
        for row in rows:
            known, missed = before.get(row.id, (row, -1))
            is_silent = known.heartbeat == row.heartbeat
            self._peers[row.id] = (row, missed + 1 if is_silent else 0)
        self._check_own()
        self._store.close_all()

    def _lack_of_threads(self) -> str | None:
        """Say which runs keep all threads here, those that were lent as well, if they do."""
        overdue = [run.envelope.id for run in self._process.runs.overdue()]
        if len(overdue) < 2 * self._config.concurrency:
            return None
        return f"Overdue runs keep all threads: {', '.join(overdue)}."

    def _rescue_dead(self) -> bool:
        """Take over what dead processes held; return whether anything was."""
        has_released = False
        liveness = self._process.liveness
        for process_id, (row, missed) in list(self._peers.items()):
            if missed >= MISSED_HEARTBEATS or liveness.has_ended(process_id, row.host_id):
                if self._rescue(process_id):
                    has_released = True
                else:
                    del self._peers[process_id]
                    self._store.close_all()  # It may have died before it closed a group.
        return has_released

    def _rescue(self, process_id: str) -> bool:
        """Take over a batch of what a dead process held; tell whether there was any."""
        orphans = self._processes.claimed_by(process_id)
        if not orphans:
            if self._processes.deregister(process_id):  # Else it held what is another app's.
                self._process.liveness.forget(process_id)
            return False
        logger.warning("Rescued %d deliveries of dead process %s.", len(orphans), process_id)
        begun = [orphan.envelope for orphan in orphans if orphan.has_begun]
        self._settler.each(begun, self._settler.record_crash)
        self._store.release([each.envelope for each in orphans if not each.has_begun])
        return True

    def _settle_awaited(self, now: float) -> None:
        """Settle what was left to its run here, which is over, or of which nothing is known."""
        for key, (envelope, deadline) in list(self._process.awaited.items()):
            has_verdict = self._process.runs.verdict_on(envelope) is not None
            if has_verdict or (now >= deadline and envelope not in self._process.runs):
                if not has_verdict and self._is_moving(envelope):
                    continue
                self._settler.each([envelope], self._settle_begun)
                self._process.awaited.pop(key, None)

    def _is_moving(self, envelope: Envelope) -> bool:
        """Tell whether the attempt is in time by its last checkpoint; then go on waiting for it."""
        idle = self._store.idle_for(envelope)
        timeout = min(options_of(state_of(self._app), envelope).timeout, LONGEST_WAIT)
        if idle is None or idle >= timeout:
            return False
        self._process.leave(envelope, timeout - idle)
        return True

    def _settle_begun(self, envelope: Envelope) -> None:
        """Settle an attempt that began, by the verdict on it if this process has one."""
        verdict = self._process.runs.verdict_on(envelope)
        # "Replayed" says that another attempt has taken its place, so nothing will come of it.
        if verdict is not None and verdict.outcome is not Outcome.REPLAYED:
            self._settler.record(envelope, verdict)
        else:
            self._settler.fail(envelope, LOST, "Its outcome is unknown.")

    def _check_own(self) -> None:
        """Settle what the table says is ours and nobody here remembers."""
        process = self._process
        finished_before = set(process.runs.finished)
        missing = {
            orphan.envelope.id: orphan
            for orphan in self._processes.claimed_by(process.id)
            if not process.knows(orphan.envelope)
        }
        for delivery_id, orphan in missing.items():
            # Seen twice: between a commit and its note here there may be a moment.
            if delivery_id in self._missing:
                if orphan.has_begun:
                    self._settler.each([orphan.envelope], self._settle_begun)
                else:
                    self._store.release([orphan.envelope])
        self._missing = set(missing)
        self._processes.leave_cancelled(process.id, process.runs.ids())
        known = {key_of(orphan.envelope) for orphan in missing.values()}
        known |= set(process.awaited)
        known |= {key_of(one.envelope) for one in list(process.claimed.values())}
        for key in finished_before - known:
            process.runs.finished.pop(key, None)

    def _tidy(self, now: float) -> None:
        """Let nothing that was due wait for a clock that was set back, and purge what is old."""
        ahead = self._store.now() - now
        if ahead < self._clock_ahead - _CLOCK_STEP:
            self._store.make_due()
        self._clock_ahead = ahead
        if self._purge_at == float("-inf"):
            for problem in self._outbox.orphaned():
                logger.warning("%s", problem)
        if now >= self._purge_at:
            _, next_page = self._outbox.purge_page(self._config.keep, self._purged_to)
            self._purged_to = next_page or 0.0
            self._purge_at = now + (_PURGE_EVERY if next_page is None else 0)
