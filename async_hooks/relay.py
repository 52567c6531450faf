"""The relay: takes envelopes over from requests and hands each to the transport.

Who owns what. A put never waits: it appends to a queue in memory. The queue belongs to a *crew*
of ``ASYNC_HOOKS_CONCURRENCY`` daemon threads, made at the first put in each process; a crew knows
its process, and a forked child makes its own. An envelope belongs to the queue until a thread
takes it, then to that thread until the transport's verdict. When the process dies, both are lost:
at most once is the promise without an outbox. When it ends in order, ``stop`` empties the queue.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from random import uniform

from flask import Flask

from .config import Config
from .envelope import Envelope
from .errors import AddressUnknown, NotConsumed, NotTaken, TransportError
from .signals import emit, task_discarded, task_failed
from .state import Transport
from .verdict import Outcome, Verdict

#: Outcomes that say "later": the same envelope is sent again with a fresh token.
_LATER = (Outcome.BUSY, Outcome.EXPIRED)

#: Seconds between two such tries: doubled from the first to the second, with jitter.
_PAUSE, _LONGEST_PAUSE = 0.02, 0.2

logger = logging.getLogger("async_hooks")
_relays: weakref.WeakSet[Relay] = weakref.WeakSet()


class _Crew:
    """The threads of one process and what they work on."""

    def __init__(self) -> None:
        # Looked up late, so that gevent's patch counts.
        self.queue: queue.SimpleQueue[Envelope | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.running: dict[int, Envelope] = {}
        self.stopping = threading.Event()


class Relay:
    """Carries the envelopes of one app: by ``transport``, or else ``fallback``.

    ``in_process`` runs what is left when the process ends: its server takes no more requests.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        transport: Transport,
        *,
        fallback: Transport | None,
        in_process: Transport,
    ) -> None:
        self._app = app
        self._config = config
        self._transport = transport
        self._fallback = fallback
        self._in_process = in_process
        self._crews: dict[int, _Crew] = {}
        self._warned_of_address = False
        _relays.add(self)

    def put(self, envelope: Envelope) -> None:
        """Take ``envelope`` over; when the queue is full, run it here, or drop it loudly."""
        crew = self._crew()
        if crew.stopping.is_set():
            self._settle(envelope, self._in_process.send(envelope))
        elif crew.queue.qsize() < self._config.queue_size:
            crew.queue.put(envelope)
        else:
            self._overflow(envelope)

    def stop(self, grace: float) -> None:
        """Run what waits and let what runs finish, for at most ``grace`` seconds."""
        crew = self._crews.get(os.getpid())
        if crew is None:
            return
        crew.stopping.set()
        deadline = time.monotonic() + grace
        for _ in crew.threads:
            crew.queue.put(None)
        for thread in crew.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for envelope in _left(crew.queue):
            if time.monotonic() < deadline:  # It was put while the threads were leaving.
                self._settle(envelope, self._in_process.send(envelope))
            else:
                self._fail(envelope, NotTaken(_too_late("waiting", grace)))
        for envelope in list(crew.running.values()):
            self._fail(envelope, TransportError(_too_late("on its way", grace)))

    def forget(self) -> None:
        """Drop what another process owns; called in a forked child."""
        self._crews.clear()

    def _crew(self) -> _Crew:
        crew = self._crews.get(os.getpid())
        if crew is not None:
            return crew
        # No lock: a fork could copy it locked. setdefault is atomic, and the winner starts.
        mine = _Crew()
        crew = self._crews.setdefault(os.getpid(), mine)
        if crew is mine:
            for number in range(self._config.concurrency):
                name = f"async_hooks-{self._app.name}-{number}"
                thread = threading.Thread(target=self._work, args=(crew,), name=name, daemon=True)
                crew.threads.append(thread)
                thread.start()
        return crew

    def _work(self, crew: _Crew) -> None:
        me = threading.get_ident()
        while (envelope := crew.queue.get()) is not None:
            crew.running[me] = envelope
            self._deliver(envelope, crew)
            del crew.running[me]

    def _deliver(self, envelope: Envelope, crew: _Crew) -> None:
        try:
            self._settle(envelope, self._carry(envelope, crew))
        except TransportError as error:
            if error.unsent and (crew.stopping.is_set() or self._fallback is not None):
                self._fall_back(envelope, error, crew)
            else:
                self._fail(envelope, error)
        except Exception as error:
            # A transport of the user's own, or a bug of ours: neither may end this thread.
            logger.exception("The transport raised on envelope %s.", envelope.id)
            self._fail(envelope, TransportError(f"{type(error).__name__}: {error}"))

    def _carry(self, envelope: Envelope, crew: _Crew) -> Verdict | None:
        """Send until the verdict is final, for no longer than a token lives."""
        deadline = time.monotonic() + self._config.max_age
        pause = _PAUSE
        while True:
            # A process that ends takes no requests any more, its own included.
            ending = crew.stopping.is_set()
            try:
                verdict = (self._in_process if ending else self._transport).send(envelope)
            except NotConsumed:
                if self._fallback is not None or time.monotonic() > deadline:
                    raise
            else:
                is_final = verdict is None or verdict.outcome not in _LATER
                if is_final or time.monotonic() > deadline:
                    return verdict
            crew.stopping.wait(pause * uniform(0.5, 1.5))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _fall_back(self, envelope: Envelope, error: TransportError, crew: _Crew) -> None:
        if not crew.stopping.is_set():
            self._warn(envelope, error)
        self._settle(envelope, (self._fallback or self._in_process).send(envelope))

    def _warn(self, envelope: Envelope, error: TransportError) -> None:
        if isinstance(error, AddressUnknown):
            if self._warned_of_address:
                return
            self._warned_of_address = True
        logger.warning("Envelope %s runs in this process instead: %s", envelope.id, error)

    def _overflow(self, envelope: Envelope) -> None:
        error = NotTaken(
            f"{self._config.queue_size} envelopes wait in memory already, all that "
            "'ASYNC_HOOKS_QUEUE_SIZE' allows. Raise it or 'ASYNC_HOOKS_CONCURRENCY'."
        )
        if self._fallback is None:
            self._fail(envelope, error)
            return
        logger.warning("Envelope %s runs in the request's own thread: %s", envelope.id, error)
        self._settle(envelope, self._fallback.send(envelope))

    def _settle(self, envelope: Envelope, verdict: Verdict | None) -> None:
        """Report what the executor could not: it reports its own failures and successes."""
        if verdict is None or verdict.outcome in (Outcome.COMPLETED, Outcome.FAILED):
            return
        error = verdict.error or verdict.outcome
        if verdict.outcome is Outcome.DISCARDED:
            with self._app.app_context():
                emit(task_discarded, self._app, envelope=envelope, error=error)
        elif verdict.outcome is Outcome.RETRY:
            logger.error("Envelope %s asks for a retry, which needs an outbox.", envelope.id)
        else:
            self._fail(envelope, TransportError(error))

    def _fail(self, envelope: Envelope, error: TransportError) -> None:
        with self._app.app_context():
            emit(task_failed, self._app, envelope=envelope, exception=error)


def _too_late(doing: str, grace: float) -> str:
    return (
        f"It was still {doing} {grace:g} seconds after the process was told to end. "
        "Raise 'ASYNC_HOOKS_GRACE'."
    )


def _left(waiting: queue.SimpleQueue[Envelope | None]) -> list[Envelope]:
    left: list[Envelope] = []
    while True:
        try:
            envelope = waiting.get_nowait()
        except queue.Empty:
            return left
        if envelope is not None:
            left.append(envelope)


def _stop_all() -> None:
    for relay in list(_relays):
        relay.stop(relay._config.grace)


def _forget_all() -> None:
    for relay in list(_relays):
        relay.forget()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
