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
    """A run, the thread that it keeps, and until when it is in time (``until``).

    ``awaited_until`` is when whoever sent it hangs up; ``shown`` is progress to be written.
    """

    __slots__ = ("awaited_until", "call", "envelope", "is_overdue", "shown", "thread", "until")

    def __init__(self, envelope: Envelope, timeout: float) -> None:
        self.envelope = envelope
        self.thread = threading.current_thread()
        self.is_overdue = False
        self.until = self.awaited_until = time.monotonic() + timeout
        self.call: Call | None = None
        self.shown: tuple[str, float] | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether whoever sent it has hung up."""
        return time.monotonic() >= self.awaited_until

    def note_written(self, shown: tuple[str, float]) -> None:
        """Note that others see this progress; what was shown since is still to be written."""
        if self.shown is shown:
            self.shown = None

    def overdue_for(self) -> float:
        """Return for how many seconds it has been overdue; negative before."""
        return time.monotonic() - self.until


class Runs:
    """The runs of one app in this process; ``report`` is called once with each that is overdue.

    ``wake`` is called when there is progress to write. Any thread may start and end a run: each
    change is a single step of a dict.
    """

    def __init__(
        self, report: Callable[[Running], None], wake: Callable[[], None] = lambda: None
    ) -> None:
        self._report = report
        self._wake = wake
        #: Whether progress was shown since the last that was written.
        self.has_shown = False
        self._running: dict[Key, Running] = {}
        #: Verdicts on runs that are over, and that the relay may not have settled yet.
        self.finished: dict[Key, Verdict] = {}

    def start(self, envelope: Envelope, timeout: float) -> bool:
        """Note that an attempt is about to begin; return false if it runs here already.

        It is overdue in ``timeout`` seconds.
        """
        run = Running(envelope, timeout)
        if self._running.setdefault(key_of(envelope), run) is not run:
            return False
        run.call = call_later(timeout, lambda: self._overdue(run))
        return True

    def move_deadline(self, envelope: Envelope, timeout: float) -> None:
        """Let the attempt be in time for ``timeout`` seconds from now: it goes on."""
        run = self._running.get(key_of(envelope))
        if run is not None:
            run.until = time.monotonic() + timeout
            if run.is_overdue:
                run.is_overdue = False
                run.call = call_later(timeout, lambda: self._overdue(run))

    def show(self, envelope: Envelope, progress: str, at: float) -> None:
        """Note its progress, as JSON, at a time of the outbox's clock; wake who writes it."""
        run = self._running.get(key_of(envelope))
        if run is not None:
            run.shown = progress, at
            if not self.has_shown:
                self.has_shown = True
                self._wake()

    def shown(self) -> list[tuple[Running, tuple[str, float]]]:
        """Return what is to be written of the runs' progress."""
        return [(run, run.shown) for run in list(self._running.values()) if run.shown is not None]

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
            if (left := run.until - time.monotonic()) > 0:  # It has moved since.
                run.call = call_later(left, lambda: self._overdue(run))
                return
            run.is_overdue = True
            # Not in the timer's thread: who listens may take time.
            started("async_hooks-overdue", lambda: self._report(run))


def key_of(envelope: Envelope) -> Key:
    return envelope.id, envelope.lease
