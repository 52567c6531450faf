"""A queue in memory: where envelopes wait that no outbox keeps.

What is in it is lost when its process is killed: at most once is the promise without an outbox.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Sequence

from flask import Flask

from ..envelope import Envelope
from ..errors import NotTaken, Overdue, TransportError
from ..host.timer import call_later
from ..log import ids
from ..signals import send_in_context, task_discarded, task_failed
from ..state import Result, Transport
from ..texts import error_text
from ..verdict import Outcome, Verdict
from .process import pause_after
from .relay import Relay

logger = logging.getLogger("async_hooks")


class Memory:
    """A source whose envelopes wait in this process, at most ``size`` of them.

    One that the app refuses before its task is sent again, for ``max_age`` seconds.
    """

    def __init__(self, app: Flask, size: int, max_age: float) -> None:
        self._app = app
        self._size = size
        self._max_age = max_age
        self._is_stopped = False
        #: What the app refused, by id, until it is sent again; when it was first, and how often.
        self._deferred: dict[str, Envelope] = {}
        self._refusals: dict[str, tuple[float, int]] = {}
        # Looked up here, at its process' first use, so that gevent's patch counts.
        self._waiting: queue.SimpleQueue[Envelope | None] = queue.SimpleQueue()

    def add(self, envelope: Envelope) -> None:
        """Let ``envelope`` wait for a sender.

        :raises NotTaken: if as many wait as are allowed.
        """
        if self._waiting.qsize() + len(self._deferred) >= self._size:
            raise NotTaken(
                f"{self._size} envelopes wait in memory already, all that "
                "'ASYNC_HOOKS_QUEUE_SIZE' allows. Raise it or 'ASYNC_HOOKS_CONCURRENCY'."
            )
        self._waiting.put(envelope)

    def next(self) -> Envelope | None:
        """Wait for the next envelope and return it; once stopped, None if there is none."""
        try:
            envelope = self._waiting.get(block=not self._is_stopped)
            while envelope is None:
                envelope = self._waiting.get_nowait()
        except queue.Empty:
            self._waiting.put(None)  # Wakes the next who waits, to end as well.
            return None
        return envelope

    def settle(self, envelope: Envelope, result: Result) -> None:
        is_deferred = isinstance(result, Verdict) and self._defer(envelope, result)
        if not is_deferred:
            self._refusals.pop(envelope.id, None)
            report(self._app, envelope, result)

    def _defer(self, envelope: Envelope, verdict: Verdict) -> bool:
        """Let a refused envelope be sent again, behind the others; false for what is over."""
        if verdict.outcome is not Outcome.INTERCEPTED:
            return False
        now = time.monotonic()
        since, count = self._refusals.get(envelope.id, (now, 0))
        if self._is_stopped or now - since > self._max_age:
            return False
        if count == 0:
            what = "Envelope %s is sent again later: %s"
            logger.warning(what, envelope.id, verdict.error, extra=ids(envelope))
        self._refusals[envelope.id] = since, count + 1
        self._deferred[envelope.id] = envelope
        call_later(
            pause_after(count), lambda: None if self._is_stopped else self._requeue(envelope)
        )
        return True

    def _requeue(self, envelope: Envelope) -> None:
        if self._deferred.pop(envelope.id, None) is not None:
            self._waiting.put(envelope)

    def lose(self, envelope: Envelope, error: BaseException) -> None:
        """Report that a sender failed on ``envelope``."""
        self.settle(envelope, TransportError(error_text(error)))

    def stop(self) -> None:
        """Let senders end once nothing waits."""
        self._is_stopped = True
        for envelope in list(self._deferred.values()):
            self._requeue(envelope)
        self._waiting.put(None)

    def end(self, unfinished: Sequence[Envelope], error: TransportError) -> None:
        """Report what the process leaves unfinished."""
        deferred = [self._deferred.pop(each) for each in list(self._deferred)]
        for envelope in [*unfinished, *deferred]:
            self.settle(envelope, error)


class MemoryRelay(Relay[Memory]):
    """Carries what waits in memory."""

    def submit(self, envelope: Envelope) -> None:
        """Take ``envelope`` over; when there is no room, run it here, or drop it with an error."""
        pool = self._pool[os.getpid()]
        try:
            # A stop runs what waits, and at its end no thread can be started.
            if not (pool.threads or pool.stopping.is_set() or self._start(pool)):
                raise NotTaken("No thread could be started. Is there a limit on threads?")
            pool.source.add(envelope)
        except NotTaken as why:
            if self._fallback is None:
                pool.source.settle(envelope, why)
                return
            what = "Envelope %s runs in the request's own thread: %s"
            logger.warning(what, envelope.id, why, extra=ids(envelope))
            self._deliver(pool, envelope, self._fallback.send)
        else:
            if pool.has_left.is_set():
                self._run_remaining(pool)


class Immediate:
    """Takes the relay's place in tests: what is submitted has run before ``submit`` returns."""

    def __init__(self, app: Flask, transport: Transport) -> None:
        self._app = app
        self._transport = transport

    def submit(self, envelope: Envelope) -> None:
        """Send ``envelope``; raise what it raised, or that it did not run."""
        verdict = self._transport.send(envelope)
        report(self._app, envelope, verdict)
        if verdict is not None and verdict.outcome not in (Outcome.COMPLETED, Outcome.DISCARDED):
            raise TransportError(verdict.error or verdict.outcome)


def report(app: Flask, envelope: Envelope, result: Result) -> None:
    """Report what the executor could not: it reports its own failures and successes."""
    if isinstance(result, Overdue):
        return
    if isinstance(result, TransportError):
        send_in_context(task_failed, app, envelope=envelope, exception=result)
        return
    if not isinstance(result, Verdict) or result.outcome in (Outcome.COMPLETED, Outcome.FAILED):
        return  # A transport of the user's may return anything.
    error = result.error or result.outcome
    if result.outcome is Outcome.DISCARDED:
        send_in_context(task_discarded, app, envelope=envelope, error=error)
    elif result.outcome in (Outcome.RETRY, Outcome.CONTINUED):
        what = "Envelope %s asks for another run (%s), which needs an outbox."
        logger.error(what, envelope.id, result.outcome, extra=ids(envelope))
    else:
        send_in_context(task_failed, app, envelope=envelope, exception=TransportError(error))
