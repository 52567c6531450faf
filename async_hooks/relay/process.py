"""One process, as the outbox of its app knows it: what it has claimed, runs and has finished."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from functools import cached_property
from random import uniform

from ..envelope import Envelope, new_id
from ..host.liveness import ProcessLock
from ..host.notifier import Notifier
from ..host.stopping import is_server_stopping
from ..verdict import Verdict
from .runs import Key, Running, Runs, key_of

#: Seconds between two looks for what other processes have added.
POLL = 1.0

#: Seconds after which what waits for a sender goes back, if all are busy.
SOON = 0.1

#: Deliveries that are claimed ahead for each sender at first, and for all senders at most.
_PREFETCH, _MOST = 4, 100

#: The most deliveries whose own pauses are remembered.
_REMEMBERED = 10_000

#: Seconds that a delivery which did not arrive waits first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0


class Claimed:
    """A delivery that this process has claimed; ``sent_at`` is None while it waits for a sender."""

    __slots__ = ("claimed_at", "envelope", "sent_at")

    def __init__(self, envelope: Envelope, claimed_at: float) -> None:
        self.envelope = envelope
        self.claimed_at = claimed_at
        self.sent_at: float | None = None


class Breaker:
    """Slows a relay down while nothing that it sends arrives: 0.5 s, doubled, up to 60 s."""

    FIRST, LONGEST = 0.5, 60.0

    def __init__(self) -> None:
        self.problem: str | None = None
        self._until = 0.0
        self._pause = 0.0

    def is_open(self, now: float) -> bool:
        return now < self._until

    def trip(self, problem: str, now: float) -> bool:
        """Pause; return whether this is news. Of several that fail while it is open, one counts."""
        is_news = problem != self.problem
        self.problem = problem
        if not self.is_open(now):
            self._pause = min(max(2 * self._pause, self.FIRST), self.LONGEST)
            self._until = now + self._pause * uniform(0.8, 1.2)  # noqa: S311
        return is_news

    def reset(self) -> None:
        self.problem, self._until, self._pause = None, 0.0, 0.0


class Process:
    """This process. Times are seconds of its ``monotonic`` clock.

    Any thread may change ``claimed`` (by id), ``awaited`` (by claim) and ``runs``: each change is a
    single step of a dict. All else belongs to the thread that claims.
    """

    def __init__(
        self,
        runtime_name: str,
        monotonic: Callable[[], float] = time.monotonic,
        report: Callable[[Running], None] = lambda run: None,
    ) -> None:
        """``runtime_name`` names the folder that it shares with others of its machine.

        ``report`` is called once with each run that is overdue.
        """
        self.id = new_id()
        self.pid = os.getpid()
        self.runtime_name = runtime_name
        self.monotonic = monotonic
        self.claimed: dict[str, Claimed] = {}
        #: How much may be claimed: more while it is quickly done, less once some had to go back.
        self.prefetch = 0
        #: Ends the waiting of the thread that claims.
        self.notifier = Notifier()
        self.runs = Runs(report, self.notifier.notify)
        #: Set when it has a row in the table, or is about to: only then others see it die.
        self.is_registered = threading.Event()
        #: Attempts that are left to whoever runs them, and until when.
        self.awaited: dict[Key, tuple[Envelope, float]] = {}
        #: Until when a (task, receiver) is left alone that some process does not know.
        self.parked: dict[tuple[str, str], float] = {}
        self.breaker = Breaker()
        #: What keeps the claiming itself from working.
        self.own_problem: str | None = None
        #: Set when nothing more is claimed, and when what still runs is left to the others.
        self.stopping = threading.Event()
        self.ended = threading.Event()
        #: How often a delivery did not arrive: for want of a way (True), or of time (False).
        self._failures: dict[tuple[str, bool], int] = {}

    @cached_property
    def liveness(self) -> ProcessLock:
        """What shows the others on this machine that it lives, held from its first use on."""
        return ProcessLock(self.runtime_name, self.id)

    @property
    def is_stopping(self) -> bool:
        """Whether it, or its server, lets what runs come to an end, and begins nothing."""
        return self.stopping.is_set() or is_server_stopping()

    @property
    def problem(self) -> str | None:
        """What keeps it from claiming or sending, if anything does."""
        return self.own_problem or self.breaker.problem

    # -- what it has claimed

    def claim(self, envelope: Envelope) -> None:
        self.claimed[envelope.id] = Claimed(envelope, self.monotonic())

    def send(self, envelope: Envelope) -> bool:
        """Note that a sender takes ``envelope``; return false if it was released meanwhile."""
        claimed = self.claimed.get(envelope.id)
        if claimed is None or claimed.envelope is not envelope:
            return False
        claimed.sent_at = self.monotonic()
        return True

    def drop(self, envelope: Envelope) -> None:
        """Hold ``envelope`` no longer; a later claim of the same delivery stays."""
        claimed = self.claimed.get(envelope.id)
        if claimed is not None and claimed.envelope.lease == envelope.lease:
            self.claimed.pop(envelope.id, None)

    def senders(self, concurrency: int) -> int:
        """Return how many senders there are: more are lent in place of those of overdue runs."""
        kept = sum(run.envelope.id in self.claimed for run in self.runs.overdue())
        return concurrency + min(concurrency, kept)

    def room(self, senders: int) -> int:
        """Return how many more deliveries may be claimed for ``senders``.

        What waits here waits for them alone; in the table, any process can have it.
        """
        if self._is_stuck(senders):
            return 0
        self.prefetch = max(self.prefetch, _PREFETCH * senders)
        return self.prefetch - len(self.claimed)

    def note_full(self) -> None:
        """Note that more was due than there was room for."""
        self.prefetch = min(2 * self.prefetch, _MOST)

    def unsent(self, *, longer_than: float = float("-inf")) -> list[Envelope]:
        """Return what has waited here for a sender for ``longer_than`` seconds."""
        before = self.monotonic() - longer_than
        claimed = list(self.claimed.values())
        return [one.envelope for one in claimed if one.sent_at is None and one.claimed_at < before]

    def stale(self, senders: int) -> list[Envelope]:
        """Return what would wait here for long; less is claimed ahead from then on."""
        found = self.unsent(longer_than=SOON if self._is_stuck(senders) else POLL)
        if found:
            self.prefetch = 0
        return found

    def _is_stuck(self, senders: int) -> bool:
        """Tell whether every sender has been busy with the same delivery for a while."""
        before = self.monotonic() - SOON
        sent = [one.sent_at for one in list(self.claimed.values()) if one.sent_at is not None]
        return sum(at < before for at in sent) >= senders

    # -- what runs in it

    def finish(self, envelope: Envelope, verdict: Verdict) -> None:
        """Note that the attempt is over here, whatever became of it."""
        run = self.runs.finish(envelope, verdict)
        is_settled = envelope.lease is None or verdict.is_recorded
        if run is not None and run.is_given_up and not (is_settled or self._sends(envelope)):
            self.leave(envelope, 0.0)

    def leave(self, envelope: Envelope, seconds: float) -> None:
        """Leave an attempt to whoever runs it, for ``seconds`` if that is not seen here."""
        self.awaited[key_of(envelope)] = (envelope, self.monotonic() + seconds)
        self.notifier.notify()

    def _sends(self, envelope: Envelope) -> bool:
        claimed = self.claimed.get(envelope.id)
        return claimed is not None and claimed.envelope.lease == envelope.lease

    def knows(self, envelope: Envelope) -> bool:
        """Tell whether it holds, runs or awaits what this claim is of."""
        known = envelope.id in self.claimed or key_of(envelope) in self.awaited
        return known or envelope in self.runs

    # -- what does not arrive

    def parked_kinds(self, now: float) -> Set[tuple[str, str]]:
        """Return the (task, receiver) that are left alone now."""
        self.parked = {kind: until for kind, until in self.parked.items() if until > now}
        return self.parked.keys()

    def pause_of(self, envelope: Envelope, lacks_way: bool) -> float:
        """Return the seconds that a delivery waits which did not arrive: longer each time.

        So the next to go ahead is another one, and no delivery keeps all the others waiting.
        """
        return pause_after(self._failures.get((envelope.id, lacks_way), 0))

    def note_failure(self, envelope: Envelope, lacks_way: bool) -> bool:
        """Count that a delivery did not arrive; return whether it is the first time.

        Of many, those that did so long ago are forgotten. ``lacks_way`` says that there is no way
        to the endpoint, and not that it had no time for this one.
        """
        key = envelope.id, lacks_way
        count = self._failures.pop(key, 0) + 1
        if len(self._failures) >= _REMEMBERED:
            with suppress(KeyError, StopIteration, RuntimeError):  # Another thread did, too.
                del self._failures[next(iter(self._failures))]
        self._failures[key] = count
        return count == 1

    def note_arrival(self, envelope: Envelope) -> None:
        for lacks_way in (True, False):
            self._failures.pop((envelope.id, lacks_way), None)

    def close(self) -> None:
        """Close the lock in a forked child: it is its parent's."""
        if "liveness" in self.__dict__:
            self.liveness.close()


def pause_after(count: int) -> float:
    """Return the seconds until what did not arrive ``count`` times before is sent again."""
    return min(_FIRST_PAUSE * 2.0 ** min(count, 10), _LONGEST_PAUSE)
