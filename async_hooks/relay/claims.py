"""A source over the outbox: it claims what is due, and records what became of it."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from random import uniform
from typing import TYPE_CHECKING

from flask import Flask

from ..config import Config
from ..delivery import Claim
from ..envelope import Envelope, Hold, new_id
from ..errors import OutboxUnavailable, TransportError
from ..host.notifier import notify_all
from ..host.threads import started
from ..limits import has_limits
from ..state import Result, state_of
from ..texts import log_exception, text_of
from ..verdict import Outcome, Verdict
from .maintenance import MISSED_HEARTBEATS, Maintenance
from .process import POLL, SOON, Process
from .progress import ProgressWriter
from .promoter import Promoter
from .settle import Settler
from .share import Share

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.open import Opened

#: The most seconds between two tries after the loop failed.
_LONGEST_PAUSE = 5.0

logger = logging.getLogger("async_hooks")


class Claims:
    """The source of ``process``: a thread of its own claims what is due in the outbox."""

    def __init__(
        self,
        app: Flask,
        config: Config,
        opened: Opened,
        process: Process,
        share: Share = Share(),  # noqa: B008 - a value
    ) -> None:
        self.process = process
        self.has_failed = False
        self._app = app
        self._config = config
        self._opened = opened
        self._store = opened.store
        self._share = share
        self._quota = sys.maxsize if share.quota is None else share.quota
        self._settler = Settler(app, config, opened.store, process)
        self._maintenance = Maintenance(self._settler, opened, share.name, share.queues or ())
        self._progress = ProgressWriter(process, opened.store)
        self._promoter = Promoter(opened.promotion)
        self._thread: threading.Thread | None = None
        #: What is claimed and waits for a sender.
        self._ready: queue.SimpleQueue[Envelope | None] = queue.SimpleQueue()
        #: Whether more was due than there was room for.
        self._has_more = False
        #: Seconds until something is due that no one will wake us for.
        self._next_due = 0.0

    def of_worker(self, config: Config, process: Process, share: Share) -> Claims:
        """Return what claims a worker's ``share`` of the same outbox."""
        return Claims(self._app, config, self._opened, process, share)

    # -- a source

    def next(self) -> Envelope | None:
        """Wait for the next claimed delivery and return it; once stopped, None."""
        while not self.process.stopping.is_set():
            envelope = self._ready.get()
            if envelope is not None and self.process.send(envelope):
                return envelope
        self._ready.put(None)  # Wakes the next who waits, to end as well.
        return None

    def settle(self, envelope: Envelope, result: Result) -> None:
        """Record what became of an attempt; wait as long as the outbox can't be written."""
        process = self.process
        if not self._settler.settle(envelope, result):
            return
        process.drop(envelope)
        well = (Outcome.COMPLETED, Outcome.INTERRUPTED, Outcome.CONTINUED)
        if not (isinstance(result, Verdict) and result.outcome in well):
            self.has_failed = True
        claimed = len(process.claimed)
        is_idle = self._share.idle is not None and not claimed
        hold = envelope.hold
        if hold is not None:
            self._promoter.touch([hold])
        if hold or is_idle or (self._has_more and claimed <= process.prefetch // 2):
            process.notifier.notify()

    def lose(self, envelope: Envelope, error: BaseException) -> None:
        """Hold ``envelope`` no longer, on which a sender failed: the table shows who has it."""
        self.process.drop(envelope)

    def stop(self) -> None:
        """Claim nothing more, and release what waits for a sender."""
        self.process.stopping.set()
        self.process.notifier.notify()
        self._ready.put(None)
        self._settler.release(self.process.unsent())

    def end(self, unfinished: Sequence[Envelope], error: TransportError) -> None:
        """Stop living; what still runs here is left to the others once the process is gone."""
        process = self.process
        process.ended.set()
        process.notifier.notify()
        if self._thread is None:  # It never lived, as far as the others know.
            return
        self._thread.join(2 * POLL)
        if not (process.claimed or process.runs):
            try:
                self._opened.processes.deregister(process.id)
            except OutboxUnavailable:
                return  # The others will see that it is gone.
            process.liveness.end()

    # -- its thread

    def start(self, *, claims: bool = True) -> bool:
        """Begin to live, and if it ``claims`` to claim, once; tell whether it does."""
        process = self.process
        self._maintenance.relays |= claims
        if self._thread is None and not process.stopping.is_set():
            # From its very first run on, this process answers for what it runs: whoever sent it
            # may die before our first heartbeat.
            process.is_registered.set()
            self._thread = started(f"async_hooks-{self._app.name}-claims", self._run)
            if self._thread is None:
                process.is_registered.clear()
                logger.error("Can't start a relay thread; others must relay.")
        return self._thread is not None

    def wake(self, holds: Iterable[Hold] = ()) -> None:
        """Look at once for what is due, or waits by ``holds``.

        Where this process does not relay, wake those that do.
        """
        if not self._maintenance.relays:
            notify_all(self.process.runtime_name)
        else:
            self._promoter.touch(holds)
        self._has_more = True
        self.process.notifier.notify()

    def _run(self) -> None:
        """Take turns until it is stopped, and look after what still runs until the end."""
        process, pause = self.process, 0.0
        while not process.ended.is_set():
            try:
                process.notifier.listen(process.runtime_name, process.id)
                seconds = POLL
                if process.is_stopping or not self._maintenance.relays:
                    # What still runs must not be taken for dead.
                    self._maintenance.live()
                else:
                    self._tick()
                    seconds = min(POLL * uniform(0.8, 1.2), self._next_due)  # noqa: S311
                process.notifier.wait(self._progress.write(seconds))
                pause, process.own_problem = 0.0, None
            except Exception as error:  # It makes a pause, and never takes the app down.
                # No longer than a heartbeat: who pauses must not be taken for dead.
                longest = min(_LONGEST_PAUSE, self._config.lease / MISSED_HEARTBEATS)
                pause = min(max(2 * pause, 0.1), longest)
                process.own_problem = text_of(error)
                if isinstance(error, OutboxUnavailable):
                    logger.warning("The relay waits %.1f s: %s", pause, error)
                else:
                    what = "The relay failed; it retries in %.1f s."
                    log_exception(logger, error, what, pause)
                process.ended.wait(pause * uniform(0.5, 1.0))  # noqa: S311
        with suppress(Exception):
            self._maintenance.live()  # Settles what has ended meanwhile.
        process.notifier.close()

    def _tick(self) -> None:
        """Do once what there is to do."""
        now = self.process.monotonic()
        if self._maintenance.maintain(now):
            self._has_more = True
        kinds = self._maintenance.kinds - self.process.parked_kinds(now)
        self._promoter.run(kinds, has_limits=has_limits(state_of(self._app)))
        self._claim(now)
        self._next_due = min(self._next_due, self._promoter.due_in(self._store.now()))

    def _claim(self, now: float) -> None:
        """Claim as many as there is room for, and find out when to do so again."""
        process = self.process
        room = process.room(process.senders(self._config.concurrency))
        if self._share.strict or not process.runs.overdue():
            room = min(room, self._quota)
        self._has_more, self._next_due = True, POLL  # For all that is known.
        if room <= 0 or process.breaker.is_open(now):
            self._say_if_idle(is_used_up=True)
            return
        if process.breaker.problem is not None:
            room = 1  # One goes ahead, to see whether anything arrives again.
        self._has_more = False
        kinds = self._maintenance.kinds - process.parked_kinds(now)
        claim = Claim(process.id, new_id())
        claimed, due_in = self._store.claim(claim, kinds, room, self._share.queues)
        if claimed and not self._share.accepts():
            self._store.release(claimed)
            return
        self._quota -= len(claimed)
        if not claimed:
            self._say_if_idle(is_used_up=False)
        for envelope in claimed:
            process.claim(envelope)
            self._ready.put(envelope)
        if process.stopping.is_set():
            self._settler.release(process.unsent())
        if len(claimed) == room:
            self._has_more = True
            process.note_full()
        elif due_in is not None:
            self._next_due = due_in
        elif claimed:  # Behind it, something may be due soon.
            self._next_due = SOON

    def _say_if_idle(self, *, is_used_up: bool) -> None:
        idle = self._share.idle
        if idle is not None and not self.process.claimed and (self._quota <= 0 or not is_used_up):
            idle(is_used_up)
