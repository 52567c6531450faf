"""What runs in one process, and what takes longer than its timeout: that is overdue.

An overdue run is reported once and goes on, because no thread can be stopped: its own end counts
when it comes. Until then it keeps its thread, and another is lent in its place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ..envelope import Envelope
from ..host.threads import started
from ..host.timer import Call, call_later, cancel
from ..verdict import Verdict

#: A delivery's id and the lease of one claim: of one delivery, several attempts may run here.
Key = tuple[str, str | None]

logger = logging.getLogger("async_hooks")


class Running:
    """A run, the thread that it keeps, and whether it is overdue."""

    __slots__ = ("call", "envelope", "is_overdue", "thread")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.thread = threading.current_thread()
        self.is_overdue = False
        self.call: Call | None = None

    def overdue_for(self) -> float:
        """Return for how many seconds it has been overdue; negative before."""
        return time.monotonic() - self.call.due if self.call is not None else float("-inf")


class Runs:
    """The runs of one app in this process; ``report`` is called once with each that is overdue.

    Any thread may start and end one: each change is a single step of a dict.
    """

    def __init__(self, report: Callable[[Running], None]) -> None:
        self._report = report
        self._running: dict[Key, Running] = {}
        #: Verdicts on runs that are over, and that the relay may not have settled yet.
        self.finished: dict[Key, Verdict] = {}

    def start(self, envelope: Envelope, timeout: float) -> bool:
        """Note that an attempt is about to begin; return false if it runs here already.

        It is overdue in ``timeout`` seconds.
        """
        run = Running(envelope)
        if self._running.setdefault(key_of(envelope), run) is not run:
            return False
        run.call = call_later(timeout, lambda: self._overdue(run))
        return True

    def forget(self, envelope: Envelope) -> Running | None:
        """Note that the attempt did not begin here, or is over; return the run."""
        run = self._running.pop(key_of(envelope), None)
        if run is not None and run.call is not None:
            cancel(run.call)
        return run

    def finish(self, envelope: Envelope, verdict: Verdict) -> Running | None:
        """Note that the attempt is over, whatever became of it; return the run."""
        if envelope.lease is not None and not verdict.is_recorded:
            self.finished[key_of(envelope)] = verdict
        return self.forget(envelope)

    def __contains__(self, envelope: Envelope) -> bool:
        """Tell whether this very attempt runs here."""
        return key_of(envelope) in self._running

    def __bool__(self) -> bool:
        return bool(self._running)

    def verdict_on(self, envelope: Envelope) -> Verdict | None:
        """Return the verdict on this very attempt, if it is over here and not settled yet."""
        return self.finished.get(key_of(envelope))

    def ids(self) -> set[str]:
        """Return the ids of the deliveries that run here."""
        return {delivery_id for delivery_id, _ in list(self._running)}

    def overdue(self) -> list[Running]:
        return [run for run in list(self._running.values()) if run.is_overdue]

    def _overdue(self, run: Running) -> None:
        if run.envelope in self:
            run.is_overdue = True
            # Not in the timer's thread: who listens may take time.
            started("async_hooks-overdue", lambda: self._report(run))


def key_of(envelope: Envelope) -> Key:
    return envelope.id, envelope.lease
