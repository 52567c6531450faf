"""What a process' relay knows from one turn to the next, and shares between its parts."""

from __future__ import annotations

import threading

from ..envelope import Envelope
from ..host.notifier import Notifier
from .outcomes import Breaker
from .pace import Pace

#: The most deliveries whose own pauses are remembered.
_REMEMBERED = 10_000

#: Seconds that a delivery which does not get away waits first, and at most.
_FIRST, _LONGEST = 0.5, 60.0


class Notes:
    """``stopping`` ends the claiming, ``ended`` the looking after what still runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        #: Rung when there is something to do.
        self.notifier = Notifier()
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.breaker = Breaker()
        #: What keeps the loop itself from working.
        self.problem: str | None = None
        self.pace = Pace()
        self.look_at = self.heartbeat_at = self.purge_at = float("-inf")
        #: By how much the wall clock is ahead of the monotonic one, which nobody sets.
        self.clock_ahead = float("inf")
        #: Whether more was due than there was room for.
        self.has_more = False
        #: Seconds until something is due that no one will wake us for.
        self.next_due = 0.0
        self.paused: list[str] = []
        #: The (task, receiver) that this code knows.
        self.kinds: set[tuple[str, str]] = set()
        #: Until when a (task, receiver) is left alone that some process does not know.
        self.parked: dict[tuple[str, str], float] = {}
        #: Attempts that are left to whoever runs them, and until when.
        self.awaited: dict[str, tuple[Envelope, float]] = {}
        self._pauses: dict[str, float] = {}

    def pause_of(self, envelope: Envelope) -> float:
        """Return how long a delivery waits that did not get away: longer each time.

        So the next to go ahead is another one, and no delivery keeps all the others waiting.
        """
        if len(self._pauses) >= _REMEMBERED:
            self._pauses.clear()
        pause = min(max(2 * self._pauses.get(envelope.id, 0.0), _FIRST), _LONGEST)
        self._pauses[envelope.id] = pause
        return pause

    def forget_pause(self, envelope: Envelope) -> None:
        self._pauses.pop(envelope.id, None)
