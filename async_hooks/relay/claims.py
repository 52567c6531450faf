"""What this process has of the outbox: it claims deliveries, and has them carried and settled.

Who owns what, and what happens when its owner dies:

- A delivery that is ``available`` belongs to nobody; any process may claim it.
- Claimed, it belongs to the process that claimed it, and lies in its memory until a sender takes
  it. If the process dies, the others give it back: no attempt was used.
- Begun, it belongs to the process that executes it. If that dies, who holds the connection sees
  it at once, and else the others do: a crash is counted, and it is claimed again.
- Completed, in the transaction that says so, it is finished. If the process dies before, it runs
  once more; after, nothing is left to do. Every other ending the sender writes down; if it dies
  before, the process that executed does (``ended``), and if both died, it counts as a crash.

That a process died, the others on its machine see by its lifeline, at once; and everywhere by its
beat, which did not change during three of their own. A process that was only frozen finds, when
it goes on, that its leases are no longer the delivery's, and that nothing it says counts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from random import uniform
from typing import TYPE_CHECKING, Protocol

from flask import Flask

from ..config import Config
from ..envelope import Envelope, new_id
from ..errors import OutboxUnavailable
from ..host.notifier import Ringer
from ..host.per_process import PerProcess
from ..receivers import kinds_of
from ..state import state_of
from .notes import Notes
from .outcomes import Action, rule_for
from .process import Held
from .rescue import MISSED_HEARTBEATS, Rescue
from .settle import Ending, Settler

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.ledger import Ledger

#: Seconds between two looks for what other processes have added.
POLL = 1.0

#: Seconds between two looks for what is old enough to be purged.
_PURGE_EVERY = 60.0

#: The most seconds between two tries after the loop failed.
_LONGEST_PAUSE = 5.0

#: Seconds between two looks at all else than what is due, however often it is woken.
_LOOK = 0.2

#: Envelopes for each sender that may lie in memory or travel in any case, and for all at most.
_AHEAD, _MOST = 4, 100

#: Seconds after which what waits or travels does so for long. What gets done sooner may be held.
_SOON = 0.1

#: Seconds that the wall clock may be set back at once.
_CLOCK_STEP = 1.0

logger = logging.getLogger("async_hooks")


class Clock(Protocol):
    """What ``time`` is to the relay; a test's goes as fast as the test wants."""

    def monotonic(self) -> float: ...


class Claims:
    """Feeds ``take`` with what is due, as long as there is room, in a thread of its own."""

    def __init__(
        self,
        app: Flask,
        config: Config,
        ledger: Ledger,
        *,
        take: Callable[[Envelope], None],
        clock: Clock = time,
        name: str = "",
        queues: Sequence[str] | None = None,
        quota: int | None = None,
        idle: Callable[[bool], None] | None = None,
    ) -> None:
        """``name``, ``queues`` (in that order; None: all as one) and ``quota`` are a worker's.

        ``idle`` is called when nothing is in hand: with True if the quota of deliveries is used
        up, with False if nothing is due.
        """
        self._app = app
        self._config = config
        self._ledger = ledger
        self._take = take
        self._clock = clock
        self._queues = queues
        self._quota = quota
        self._idle = idle
        #: Whether an attempt did not succeed.
        self.has_failed = False
        self._notes = PerProcess(Notes)
        self._ringer = PerProcess(lambda: Ringer(ledger.name))
        self._settler = Settler(app, config, ledger, self._notes.get, clock.monotonic)
        self._rescue = Rescue(
            app, config, ledger, self._settler, name=name, queues=queues or (), wake=self.wake
        )

    # -- what is held

    def reserve(self, envelope: Envelope, queue: str) -> Envelope | None:
        """Return ``envelope``, about to be added, with a lease of ours; None without room."""
        notes, me = self._notes.get(), self._ledger.me
        has_looked = notes.heartbeat_at > float(
            "-inf"
        )  # It knows what is paused, and is known itself.
        is_ready = me.is_beating.is_set() and has_looked and not notes.stopping.is_set()
        if not is_ready or notes.breaker.problem is not None or self._room() <= 0:
            return None
        if queue in notes.paused:
            return None
        leased = envelope._replace(lease=new_id())
        me.held[envelope.id] = Held(leased, is_added=False)
        return leased

    def release(self, envelope: Envelope) -> None:
        """Hold ``envelope`` no longer; a later claim of the same delivery stays."""
        held = self._ledger.me.held.get(envelope.id)
        if held is not None and held.envelope.lease == envelope.lease:
            self._ledger.me.held.pop(envelope.id, None)

    def take_over(self, envelope: Envelope) -> None:
        """Have what was reserved carried, now that its response is gone."""
        held = self._ledger.me.held.get(envelope.id)
        if held is not None and held.envelope is envelope:  # Else it was given back meanwhile.
            self._take(envelope)

    def set_out(self, envelope: Envelope) -> bool:
        """Note that a sender takes ``envelope``; false if it was given back meanwhile."""
        held = self._ledger.me.held.get(envelope.id)
        if held is None or held.envelope is not envelope:
            return False
        held.set_out_at = time.monotonic()
        return True

    def settle(self, envelope: Envelope, ending: Ending) -> None:
        """Write what became of an attempt; wait as long as the outbox can't be written."""
        notes = self._notes.get()
        if not self._settler.settle(envelope, ending):
            return
        self.release(envelope)
        self.has_failed = self.has_failed or rule_for(ending).action is not Action.COMPLETE
        notes.pace.count()
        held = len(self._ledger.me.held)
        if (notes.has_more and held <= self._most() // 2) or (self._idle is not None and not held):
            notes.notifier.ring()

    def give_back(self, envelopes: Iterable[Envelope]) -> None:
        """Let others have what no sender has taken."""
        envelopes = list(envelopes)
        for envelope in envelopes:
            self.release(envelope)
        try:
            if envelopes:
                self._ledger.give_back(envelopes)
        except OutboxUnavailable as error:
            logger.warning("What waits here goes back a little later: %s", error)

    def _room(self) -> int:
        """Return how much more this process may hold.

        What waits here waits for our senders alone; in the table, any process can have it.
        """
        if self._is_stuck():
            return 0
        room = self._most() - len(self._ledger.me.held)
        return room if self._quota is None else min(room, self._quota)

    def _most(self) -> int:
        """Return how much this process may hold: what it gets done soon."""
        soon = min(_MOST, int(self._notes.get().pace.per_second * _SOON))
        return max(_AHEAD * self._config.concurrency, soon)

    def _is_stuck(self) -> bool:
        """Tell whether every sender has been busy with the same envelope for a while."""
        soon = time.monotonic() - _SOON
        out = [one.set_out_at for one in list(self._ledger.me.held.values())]
        stuck = sum(set_out_at is not None and set_out_at < soon for set_out_at in out)
        return stuck >= self._config.concurrency

    # -- the loop

    def start(self) -> None:
        """Begin to relay in this process, once."""
        notes = self._notes.get()
        if notes.thread is not None or notes.stopping.is_set():
            return
        with notes.lock:
            if notes.thread is None:
                name = f"async_hooks-{self._app.name}-claims"
                thread = threading.Thread(target=self._run, args=(notes,), name=name, daemon=True)
                # From its very first run on, this process answers for what it runs: whoever sent
                # it may die before our first beat.
                self._ledger.me.is_beating.set()
                try:
                    thread.start()
                except RuntimeError as error:
                    self._ledger.me.is_beating.clear()
                    logger.error("No thread can be started to relay; others have to: %s", error)
                else:
                    notes.thread = thread

    def wake(self) -> None:
        notes = self._notes.get()
        notes.has_more = True
        notes.notifier.ring()

    def ring(self) -> None:
        """Wake the other processes that relay, because this one does not."""
        if self._notes.get().thread is None:
            self._ringer.get().ring()

    def stop(self) -> None:
        """Claim nothing more."""
        notes = self._notes.get()
        notes.stopping.set()
        notes.notifier.ring()

    def end(self) -> None:
        """Stop living; what still runs here is left to the others once the process is gone."""
        notes, me = self._notes.get(), self._ledger.me
        notes.ended.set()
        notes.notifier.ring()
        if notes.thread is not None:
            notes.thread.join(2 * POLL)
        if not (me.held or me.running):
            try:
                self._ledger.deregister(me.relay_id)
            except OutboxUnavailable:
                return  # The others will see that it is gone.
            me.liveness.end()

    def _run(self, notes: Notes) -> None:
        """Take turns until it is stopped, and look after what still runs until the end."""
        pause = 0.0
        while not notes.ended.is_set():
            try:
                notes.notifier.hang(self._ledger.name, self._ledger.me.relay_id)
                if notes.stopping.is_set():  # What still runs must not be taken for dead.
                    self._rescue.maintain(notes, self._clock.monotonic())
                    notes.ended.wait(POLL)
                else:
                    self._tick(notes)
                    notes.notifier.wait(min(POLL * uniform(0.8, 1.2), notes.next_due))  # noqa: S311
                pause, notes.problem = 0.0, None
            except Exception as error:
                # No longer than a beat: who pauses must not be taken for dead.
                longest = min(_LONGEST_PAUSE, self._config.lease / MISSED_HEARTBEATS)
                pause = min(max(2 * pause, 0.1), longest)
                self._say(notes, error, pause)
                notes.ended.wait(pause * uniform(0.5, 1.0))  # noqa: S311
        notes.notifier.close()

    def _say(self, notes: Notes, error: Exception, pause: float) -> None:
        """Show a failure of ours: it makes a pause, and never takes the app down."""
        notes.problem = str(error)
        if isinstance(error, OutboxUnavailable):
            logger.warning("The relay waits %.1f s: %s", pause, error)
        else:
            logger.exception("The relay failed, and goes on in %.1f s.", pause)

    def _tick(self, notes: Notes) -> None:
        """Do once what there is to do."""
        now = self._clock.monotonic()
        if now >= notes.look_at:
            self._maintain(notes, now)
            notes.look_at = now + _LOOK
        self._claim(notes, now)

    def _maintain(self, notes: Notes, now: float) -> None:
        """Do what need not be done each time that somebody launches something."""
        notes.paused = self._ledger.paused()
        notes.kinds = kinds_of(state_of(self._app))
        self._rescue.maintain(notes, now)
        self._release_stale()
        self._watch_clock(notes)
        if now >= notes.purge_at:
            purged = self._ledger.purge(self._ledger.now() - self._config.keep)
            notes.purge_at = now + (0 if purged else _PURGE_EVERY)

    def _claim(self, notes: Notes, now: float) -> None:
        notes.pace.look()
        held, room = self._ledger.me.held, self._room()
        notes.next_due = POLL
        if room <= 0 or notes.breaker.is_open(now):
            notes.has_more = True  # For all that is known.
            self._say_if_idle(is_used_up=True)
            return
        if notes.breaker.problem is not None:
            room = 1  # One goes ahead, to see whether anything arrives again.
        notes.has_more = False
        notes.parked = {kind: until for kind, until in notes.parked.items() if until > now}
        kinds = notes.kinds - notes.parked.keys()
        claimed, due_in = self._ledger.claim(new_id(), kinds, room, self._queues)
        if self._quota is not None:
            self._quota -= len(claimed)
        if not claimed:
            self._say_if_idle(is_used_up=False)
        for envelope in claimed:
            held[envelope.id] = Held(envelope)
            self._take(envelope)
        if len(claimed) == room:
            notes.has_more = True
        elif due_in is not None or claimed:  # Behind what was claimed, something may be due soon.
            notes.next_due = due_in if due_in is not None else _SOON

    def _say_if_idle(self, *, is_used_up: bool) -> None:
        is_so = not is_used_up or self._quota == 0
        if self._idle is not None and is_so and not self._ledger.me.held:
            self._idle(is_used_up)

    def _release_stale(self) -> None:
        """Give back what would wait here for long: for a sender, or for its response to end."""
        limit = _SOON if self._is_stuck() else POLL
        held = list(self._ledger.me.held.values())
        self.give_back(
            one.envelope
            for one in held
            if one.set_out_at is None
            and one.since is not None
            and time.monotonic() - one.since > limit
        )

    def _watch_clock(self, notes: Notes) -> None:
        """Let nothing that was due wait until a clock that was set back has caught up."""
        ahead = self._ledger.now() - self._clock.monotonic()
        if ahead < notes.clock_ahead - _CLOCK_STEP:
            self._ledger.make_due()
        notes.clock_ahead = ahead
