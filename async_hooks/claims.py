"""What this process has of the outbox: it claims deliveries, has them carried, and settles them.

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

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from random import uniform
from typing import TYPE_CHECKING, Protocol

from flask import Flask

from .config import Config
from .delivery import Addition, Terms
from .envelope import Envelope, new_id
from .errors import OutboxUnavailable, TimedOut, TransportError
from .in_hand import Held, InHand
from .processes import PerProcess
from .receivers import backoff_of, kinds_of, max_attempts_of, timeout_of
from .settlement import Breaker, Rule, Then, rule_for
from .signals import task_discarded, task_failed, task_retrying, tell
from .state import state_of
from .task import DISCARDED, AsyncTask
from .verdict import Verdict

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from .outbox.ledger import Ledger
    from .outbox.store import Failed, Orphan, Seen

#: Seconds between two looks for what other processes have added.
POLL = 1.0

#: Beats of our own during which another process may be silent.
_SILENT_BEATS = 3

#: Seconds between two looks for what is old enough to be purged.
_PURGE_EVERY = 60.0

#: The most seconds between two tries after the loop failed.
_LONGEST_PAUSE = 5.0

#: Envelopes for each sender that may lie in memory or travel.
_AHEAD = 4

#: Seconds after which what waits or travels does so for long.
_SOON = 0.1

#: Seconds that the wall clock may be set back at once.
_CLOCK_STEP = 1.0

#: Seconds that a kind is left alone after a process said that it does not know it.
_PARKED = 30.0

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
        self._name = name
        self._queues = queues
        self._quota = quota
        self._idle = idle
        #: Whether an attempt did not succeed.
        self.has_failed = False
        self._loop = PerProcess(_Loop)

    def start(self) -> None:
        """Begin to relay in this process, once."""
        loop = self._loop.get()
        if loop.thread is None and not loop.stopping.is_set():
            with loop.lock:
                if loop.thread is None:
                    name = f"async_hooks-{self._app.name}-claims"
                    thread = threading.Thread(
                        target=self._run, args=(loop,), name=name, daemon=True
                    )
                    thread.start()
                    loop.thread = thread

    def wake(self) -> None:
        loop = self._loop.get()
        loop.has_more = True
        loop.wakeup.set()

    def reserve(self, envelope: Envelope, queue: str) -> Envelope | None:
        """Return ``envelope``, about to be added, with a lease of ours; None without room."""
        loop, held = self._loop.get(), self._ledger.me.held
        is_ready = self._ledger.me.is_beating.is_set() and not loop.stopping.is_set()
        if not is_ready or loop.breaker.trouble is not None or self._room() <= 0:
            return None
        if queue in loop.paused:
            return None
        leased = envelope._replace(lease=new_id())
        held[envelope.id] = Held(leased, is_ready=False)
        return leased

    def release(self, envelope_id: str) -> None:
        self._ledger.me.held.pop(envelope_id, None)

    def take_over(self, envelope: Envelope) -> None:
        """Have what was reserved carried, now that its response is gone."""
        held = self._ledger.me.held.get(envelope.id)
        if held is not None and held.envelope is envelope:  # Else it was given back meanwhile.
            held.is_ready = True
            self._take(envelope)

    def set_out(self, envelope: Envelope) -> bool:
        """Note that a sender takes ``envelope``; false if it was given back meanwhile."""
        held = self._ledger.me.held.get(envelope.id)
        if held is None or held.envelope is not envelope:
            return False
        held.set_out_at = time.monotonic()
        return True

    def _room(self) -> int:
        """Return how much more this process may hold.

        What waits here waits for our senders alone; in the table, any process can have it.
        """
        if self._is_stuck():
            return 0
        room = _AHEAD * self._config.concurrency - len(self._ledger.me.held)
        return room if self._quota is None else min(room, self._quota)

    def _is_stuck(self) -> bool:
        """Tell whether every sender has been busy with the same envelope for a while."""
        soon = time.monotonic() - _SOON
        out = [one.set_out_at for one in list(self._ledger.me.held.values())]
        stuck = sum(set_out_at is not None and set_out_at < soon for set_out_at in out)
        return stuck >= self._config.concurrency

    # -- settling

    def settle(self, envelope: Envelope, ending: Verdict | TransportError | None) -> None:
        """Write what became of an attempt; wait as long as the outbox can't be written."""
        pause = 0.1
        loop = self._loop.get()
        while True:
            try:
                self._settle(envelope, ending)
                break
            except OutboxUnavailable as error:
                if loop.ended.is_set():
                    logger.error("What became of envelope %s is not written.", envelope.id)
                    return
                loop.breaker.trouble = str(error)
                loop.ended.wait(pause * uniform(0.5, 1.5))  # noqa: S311
                pause = min(2 * pause, 2.0)
        self.release(envelope.id)
        self.has_failed = self.has_failed or rule_for(ending).then is not Then.COMPLETE
        if loop.has_more or self._idle is not None:
            loop.wakeup.set()

    def _settle(self, envelope: Envelope, ending: Verdict | TransportError | None) -> None:
        loop, rule = self._loop.get(), rule_for(ending)
        error = _in_words(ending)
        if isinstance(ending, TransportError):
            if self._ledger.give_back([envelope]):
                if rule.slows:
                    self._slow_down(loop, envelope, error)
            elif not isinstance(ending, TimedOut) and self._may_still_run(envelope):
                loop.beat_at = float("-inf")  # See at once who does not live.
                self._watch(loop, envelope)
            else:
                self._fail(envelope, rule, error, ending)
            return
        if rule.slows:
            self._slow_down(loop, envelope, error)
        else:
            loop.breaker.reset()
        if rule.then is Then.COMPLETE:
            assert isinstance(ending, Verdict)  # noqa: S101 - no other ending completes
            if not ending.is_kept:
                self._ledger.complete_alone(envelope)
        elif rule.then is Then.WATCH:
            self._watch(loop, envelope)
        elif rule.then is Then.PARK:
            kind = (envelope.task, envelope.receiver or "")
            loop.parked[kind] = self._clock.monotonic() + _PARKED
            logger.warning("Envelope %s waits for code that knows it: %s", envelope.id, error)
            self._ledger.give_back([envelope], begun=True)
        elif rule.then is Then.WAIT:  # The endpoint itself says that the attempt came to nothing.
            self._ledger.give_back([envelope], begun=True)
        else:
            self._fail(envelope, rule, error, ending)

    def _watch(self, loop: _Loop, envelope: Envelope) -> None:
        """Leave the attempt to the process that runs it, for as long as it may take."""
        deadline = self._clock.monotonic() + self._timeout(envelope)
        loop.watched[envelope.id] = (envelope, deadline)
        loop.wakeup.set()

    def _may_still_run(self, envelope: Envelope) -> bool:
        """Tell whether the process that began with it is seen to live: its connection was cut."""
        me, holder = self._ledger.me, self._ledger.holder(envelope)
        if holder is None or holder == me.relay_id:
            return envelope.id in me.running
        return me.lifeline.is_held(holder)

    def _slow_down(self, loop: _Loop, envelope: Envelope, error: str) -> None:
        if loop.breaker.trip(error, self._clock.monotonic()):
            logger.warning("Envelope %s did not arrive, and waits: %s", envelope.id, error)

    def _fail(
        self,
        envelope: Envelope,
        rule: Rule,
        error: str,
        ending: Verdict | TransportError | None = None,
    ) -> None:
        """End an attempt that began and did not succeed."""
        state = state_of(self._app)
        crashed = rule.then is Then.AT_ONCE

        def decide(failures: int, crashes: int) -> float | None:
            now = self._ledger.now()
            if envelope.receiver == DISCARDED:
                return None
            if crashed:
                return now if crashes < self._config.max_crashes else None
            if rule.then is Then.DISCARD or failures >= max_attempts_of(state, envelope):
                return None
            wanted = ending.after if isinstance(ending, Verdict) else None
            if wanted is None:
                wanted = backoff_of(state, envelope, failures)
            return now + max(0.0, wanted)

        error = str(state.redact(error))
        failed = self._ledger.fail(
            envelope,
            error,
            decide,
            crashed=crashed,
            last_words=lambda discarded: self._last_words(discarded, error),
        )
        if failed is None:  # Another attempt has taken its place; this one does not count.
            return
        if isinstance(ending, TransportError) or crashed:
            died = ending if isinstance(ending, TransportError) else TransportError(error)
            tell(task_failed, self._app, envelope=envelope, exception=died)
        self._tell(envelope, failed, error)

    def _last_words(self, envelope: Envelope, error: str) -> list[Addition]:
        """Return what tells the task, in a run of its own, that its delivery is discarded."""
        task = state_of(self._app).task_of(envelope)
        if task is None or task.discarded is AsyncTask.discarded or envelope.receiver == DISCARDED:
            return []
        body = json.dumps({"data": envelope.data, "error": error}, separators=(",", ":"))
        told = envelope._replace(
            id=new_id(), body=body, receiver=DISCARDED, parent_id=None, is_awaited=False
        )
        return [Addition(told, Terms(task.queue))]

    def _tell(self, envelope: Envelope, failed: Failed, error: str) -> None:
        if failed.run_at is None:
            tell(task_discarded, self._app, envelope=envelope, error=error)
        else:
            run_at = datetime.fromtimestamp(failed.run_at, UTC)
            tell(task_retrying, self._app, envelope=envelope, run_at=run_at)

    def _timeout(self, envelope: Envelope) -> float:
        return timeout_of(state_of(self._app), envelope)

    # -- the loop

    def _run(self, loop: _Loop) -> None:
        """Take turns until it is stopped; a failure of ours makes a pause, and is shown."""
        pause = 0.0
        while not loop.stopping.is_set():
            try:
                self._turn(loop)
                pause = 0.0
            except Exception as error:
                # No longer than a beat: who pauses must not be taken for dead.
                longest = min(_LONGEST_PAUSE, self._config.lease / _SILENT_BEATS)
                pause = min(max(2 * pause, 0.1), longest)
                loop.trouble = str(error)
                if isinstance(error, OutboxUnavailable):
                    logger.warning("The relay waits %.1f s: %s", pause, error)
                else:
                    logger.exception("The relay failed, and goes on in %.1f s.", pause)
                loop.stopping.wait(pause * uniform(0.5, 1.0))  # noqa: S311
            else:
                loop.trouble = None
                loop.wakeup.wait(min(POLL * uniform(0.8, 1.2), loop.next_due))  # noqa: S311
                loop.wakeup.clear()
        while not loop.ended.is_set():  # What still runs must not be taken for dead.
            with suppress(OutboxUnavailable):
                self._look_after(loop)
            loop.ended.wait(POLL)

    def _turn(self, loop: _Loop) -> None:
        """Do once what there is to do."""
        loop.paused = self._ledger.paused()
        self._look_after(loop)
        self._watch_clock(loop)
        self._claim(loop)
        now = self._clock.monotonic()
        if now >= loop.purge_at:
            loop.purge_at = now + (0 if self._purge() else _PURGE_EVERY)

    def _watch_clock(self, loop: _Loop) -> None:
        """Let nothing that was due wait until a clock that was set back has caught up."""
        ahead = self._ledger.now() - self._clock.monotonic()
        if ahead < loop.clock_ahead - _CLOCK_STEP:
            self._ledger.make_due()
        loop.clock_ahead = ahead

    def _look_after(self, loop: _Loop) -> None:
        """Live, and see who does not."""
        now = self._clock.monotonic()
        if now >= loop.beat_at:
            others = self._ledger.beat(
                loop.trouble or loop.breaker.trouble, name=self._name, queues=self._queues or ()
            )
            loop.beat_at = now + self._config.lease / _SILENT_BEATS
            self._ledger.me.is_beating.set()
            loop.others = _watched(others, loop.others)
            self._check_own(loop)
        for relay, silent in list(loop.others.items()):
            is_dead = silent.beats >= _SILENT_BEATS or self._ledger.me.lifeline.has_ended(
                relay, silent.seen.place
            )
            if is_dead:
                self._bury(relay)
                del loop.others[relay]
        for envelope, deadline in list(loop.watched.values()):
            ended = self._ledger.me.ended.get(envelope.id)
            if ended is not None and ended.envelope.lease == envelope.lease:
                del loop.watched[envelope.id]
                self._settle(envelope, ended.verdict)
            elif now >= deadline:
                del loop.watched[envelope.id]
                self._fail(envelope, Rule(Then.RETRY), "Nobody said what became of it.")
        self._check_time(loop)
        self._let_go()

    def _let_go(self) -> None:
        """Give back what would wait here for long: for a sender, or for its response to end."""
        held = list(self._ledger.me.held.values())
        limit = _SOON if self._is_stuck() else POLL
        self.give_back(
            one.envelope
            for one in held
            if one.set_out_at is None and time.monotonic() - one.since > limit
        )

    def _check_time(self, loop: _Loop) -> None:
        """Fail what runs here for too long; its thread goes on, and keeps its place."""
        running = self._ledger.me.running
        loop.overdue &= {run.envelope.lease for run in list(running.values())}
        for envelope, since in list(running.values()):
            # Who posted it has a clock of its own, and the first say.
            limit = self._timeout(envelope) + 2 * POLL
            if time.monotonic() - since > limit and envelope.lease not in loop.overdue:
                loop.overdue.add(envelope.lease)
                self._fail(envelope, Rule(Then.RETRY), f"It ran for more than {limit:g} seconds.")

    def _claim(self, loop: _Loop) -> None:
        now = self._clock.monotonic()
        held = self._ledger.me.held
        room = self._room()
        loop.next_due = POLL
        if room <= 0 or loop.breaker.is_open(now):
            if self._quota == 0 and not held and self._idle is not None:
                self._idle(True)
            return
        if loop.breaker.trouble is not None:
            room = 1  # One goes ahead, to see whether anything arrives again.
        loop.has_more = False
        loop.parked = {kind: until for kind, until in loop.parked.items() if until > now}
        kinds = kinds_of(state_of(self._app)) - loop.parked.keys()
        claimed = self._ledger.claim(new_id(), kinds, room, self._queues)
        if self._quota is not None:
            self._quota -= len(claimed)
        if not claimed and not held and self._idle is not None:
            self._idle(False)
        for envelope in claimed:
            held[envelope.id] = Held(envelope, is_ready=True)
            self._take(envelope)
        if len(claimed) == room:
            loop.has_more = True
        else:
            loop.next_due = self._ledger.next_due() or POLL

    def _check_own(self, loop: _Loop) -> None:
        """Settle what the table says is ours and nobody here remembers."""
        me = self._ledger.me
        in_table = self._ledger.held_by(me.relay_id)
        missing = [orphan for orphan in in_table if not self._is_known(loop, orphan)]
        ids = {orphan.envelope.id for orphan in missing}
        for orphan in missing:
            # Seen twice: between a commit and its note here there may be a moment.
            if orphan.envelope.id in loop.missing:
                self._settle_ended(me, orphan)
        loop.missing = ids
        for envelope_id in me.ended.keys() - ids - loop.watched.keys():
            me.ended.pop(envelope_id, None)

    def _is_known(self, loop: _Loop, orphan: Orphan) -> bool:
        me, known = self._ledger.me, orphan.envelope.id
        return known in me.held or known in me.running or known in loop.watched

    def _settle_ended(self, me: InHand, orphan: Orphan) -> None:
        """Settle what ran here, or was to run, and whose sender is gone."""
        ended = me.ended.get(orphan.envelope.id)
        if not orphan.has_begun:
            self._ledger.give_back([orphan.envelope])
        elif ended is not None and ended.envelope.lease == orphan.envelope.lease:
            self._settle(ended.envelope, ended.verdict)
        else:
            self._fail(orphan.envelope, Rule(Then.RETRY), "Nobody said what became of it.")

    def _bury(self, relay: str) -> None:
        """Take over what a dead process held."""
        died = Rule(Then.AT_ONCE, "a crash")
        while orphans := self._ledger.held_by(relay):
            logger.warning("Process %s is gone; %d deliveries go back.", relay, len(orphans))
            for orphan in orphans:
                if orphan.has_begun:
                    self._fail(orphan.envelope, died, "The process that ran it died.")
                else:
                    self._ledger.give_back([orphan.envelope])
        self._ledger.sign_off(relay)
        self._ledger.me.lifeline.forget(relay)
        self.wake()

    def _purge(self) -> bool:
        """Delete a batch of what is old enough; return whether there may be more."""
        return self._ledger.purge(self._ledger.now() - self._config.keep) > 0

    # -- the end

    def stop(self) -> None:
        """Claim nothing more."""
        loop = self._loop.get()
        loop.stopping.set()
        loop.wakeup.set()

    def give_back(self, envelopes: Iterable[Envelope]) -> None:
        """Let others have what no sender has taken."""
        envelopes = [each for each in envelopes if self._ledger.me.held.pop(each.id, None)]
        try:
            if envelopes:
                self._ledger.give_back(envelopes)
        except OutboxUnavailable as error:
            logger.warning("What waits here goes back a little later: %s", error)

    def end(self) -> None:
        """Stop living; what still runs here is left to the others once the process is gone."""
        loop, me = self._loop.get(), self._ledger.me
        loop.ended.set()
        loop.wakeup.set()
        if loop.thread is not None:
            loop.thread.join(2 * POLL)
        if not (me.held or me.running):
            with suppress(OutboxUnavailable):  # The others will see that it is gone.
                self._ledger.sign_off(me.relay_id)
                me.lifeline.end()


class _Loop:
    """One process's loop: its thread, and what it knows from one turn to the next."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.wakeup = threading.Event()
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.breaker = Breaker()
        self.trouble: str | None = None
        self.beat_at = self.purge_at = float("-inf")
        #: By how much the wall clock is ahead of the monotonic one, which nobody sets.
        self.clock_ahead = float("inf")
        #: Whether more was due than there was room for.
        self.has_more = False
        #: Seconds until something is due that no one will wake us for.
        self.next_due = POLL
        self.others: dict[str, _Silent] = {}
        self.missing: set[str] = set()
        self.paused: list[str] = []
        self.parked: dict[tuple[str, str], float] = {}
        self.watched: dict[str, tuple[Envelope, float]] = {}
        self.overdue: set[str | None] = set()


class _Silent:
    """Another relay, and during how many beats of ours its own has not changed."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.beats = 0


def _watched(others: Iterable[Seen], before: dict[str, _Silent]) -> dict[str, _Silent]:
    now: dict[str, _Silent] = {}
    for seen in others:
        known = before.get(seen.id)
        if known is not None and known.seen.beat == seen.beat:
            known.beats += 1
            now[seen.id] = known
        else:
            now[seen.id] = _Silent(seen)
    return now


def _in_words(ending: Verdict | TransportError | None) -> str:
    if isinstance(ending, Verdict):
        return ending.error or ending.outcome
    return "Nobody knows what became of it." if ending is None else str(ending)
