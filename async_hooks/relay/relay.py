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
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import uniform
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..config import Config
from ..envelope import Envelope
from ..errors import AddressUnknown, NotConsumed, NotTaken, TransportError
from ..host.per_process import PerProcess
from ..signals import send_in_context, task_discarded, task_failed
from ..state import Transport
from ..verdict import Outcome, Verdict
from ..wsgi import is_from_keyboard

if TYPE_CHECKING:
    from .claims import Claims

#: Outcomes that say "later": the same envelope is sent again with a fresh token.
_LATER = (Outcome.BUSY, Outcome.EXPIRED)

#: Seconds between two such tries: doubled from the first to the second, with jitter.
_PAUSE, _LONGEST_PAUSE = 0.02, 0.2

logger = logging.getLogger("async_hooks")
_relays: weakref.WeakSet[Relay] = weakref.WeakSet()


class Relay:
    """Carries the envelopes of one app: by ``transport``, or else ``fallback``.

    When the process ends, its server takes no more requests: ``recall`` takes back what the
    transport has under way and its server will not begin, and ``in_process`` runs what is left.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        transport: Transport,
        *,
        fallback: Transport | None,
        in_process: Transport,
        cancel_unstarted: Callable[[], None],
        claims: Claims | None = None,
    ) -> None:
        self._app = app
        self._config = config
        self._transport = transport
        self._fallback = fallback
        self._in_process = in_process
        self._cancel_unstarted = cancel_unstarted
        self._claims = claims
        self._pool = PerProcess(Pool)
        self._warned_of_address = False
        _relays.add(self)

    def start(self) -> None:
        """Begin to carry what waits in the outbox, once in each process."""
        pool = self._pool.get()
        if self._claims is not None and not pool.stopping.is_set():
            if not pool.threads:
                self._start(pool)
            self._claims.start()

    def wake(self) -> None:
        """Say that deliveries may wait in the outbox."""
        if self._claims is None:
            return
        if self._config.relay:
            if not self._app.testing:  # In a test it begins with a server's request only.
                self.start()
            self._claims.wake()
        self._claims.ring()

    def reserve(self, envelope: Envelope, queue: str) -> Envelope | None:
        """Return ``envelope`` with a lease, to be carried by this process; None without room."""
        return self._claims.reserve(envelope, queue) if self._claims is not None else None

    def release(self, envelope: Envelope) -> None:
        """Give up the place that was reserved."""
        if self._claims is not None:
            self._claims.release(envelope)

    def put(self, envelope: Envelope) -> None:
        """Take ``envelope`` over; when the queue is full, run it here, or drop it loudly."""
        pool = self._pool.get()
        if envelope.lease is not None and self._claims is not None:
            self._claims.take_over(envelope)
            return
        if not pool.threads and not self._start(pool):
            self._on_full(envelope, "No thread could be started. Is there a limit on threads?")
        elif pool.queue.qsize() < self._config.queue_size:
            pool.queue.put(envelope)
            if pool.has_left.is_set():
                self._run_remaining(pool)
        else:
            self._on_full(
                envelope,
                f"{self._config.queue_size} envelopes wait in memory already, all that "
                "'ASYNC_HOOKS_QUEUE_SIZE' allows. Raise it or 'ASYNC_HOOKS_CONCURRENCY'.",
            )

    def take(self, envelope: Envelope) -> None:
        """Take over a delivery that this process holds; there is room for it."""
        pool = self._pool.get()
        pool.queue.put(envelope)
        if pool.stopping.is_set():
            self._give_back_deliveries(pool)

    def stop(self, grace: float | None = None) -> None:
        """Run what waits and let what runs finish, for at most ``grace`` seconds.

        What waits in an outbox can wait there: it goes back.
        """
        grace = self._config.grace if grace is None else grace
        pool = self._pool.made()
        if pool is None:
            return
        pool.stopping.set()
        deadline = time.monotonic() + grace
        if self._claims is not None:
            self._claims.stop()
        self._give_back_deliveries(pool)
        self._cancel_unstarted()
        for _ in pool.threads:
            pool.queue.put(None)
        for thread in pool.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        # What is put from now on, its own thread runs; what was put before, this one.
        pool.has_left.set()
        if time.monotonic() < deadline:
            self._run_remaining(pool)
        while pool.running and time.monotonic() < deadline:
            time.sleep(0.01)
        for envelope in _drain(pool.queue):
            self._fail(envelope, NotTaken(_too_late("waiting", grace)))
        for envelope in list(pool.running.values()):
            if envelope.lease is None:
                self._fail(envelope, TransportError(_too_late("on its way", grace)))
        if self._claims is not None:
            self._claims.end()

    def _give_back_deliveries(self, pool: Pool) -> None:
        """Let others have the deliveries that wait here; what nobody else knows of stays."""
        if self._claims is None:
            return
        waiting = _drain(pool.queue)
        self._claims.give_back([envelope for envelope in waiting if envelope.lease is not None])
        for envelope in waiting:
            if envelope.lease is None:
                pool.queue.put(envelope)

    def _start(self, pool: Pool) -> bool:
        """Start the crew's threads, once; tell whether there is one."""
        with pool.lock:
            for number in range(self._config.concurrency - len(pool.threads)):
                name = f"async_hooks-{self._app.name}-{number}"
                thread = threading.Thread(target=self._work, args=(pool,), name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    break
                pool.threads.append(thread)
            loaded: Any = sys.modules.get("multiprocessing")
            if pool.threads and loaded is not None and loaded.parent_process() is not None:
                # A child of multiprocessing, which has loaded that, ends without atexit.
                from multiprocessing.util import Finalize

                Finalize(self, self.stop, exitpriority=0)
        return bool(pool.threads)

    def _work(self, pool: Pool) -> None:
        while (envelope := pool.queue.get()) is not None:
            with self._guarded(envelope):
                self._deliver(envelope, pool)

    @contextmanager
    def _guarded(self, envelope: Envelope) -> Iterator[None]:
        """Let nothing out of the block, whatever it is: it is this envelope's failure.

        While the block runs, a stop knows that the envelope is on its way.
        """
        running, key = self._pool.get().running, object()
        running[key] = envelope
        try:
            yield
        except BaseException as error:
            if is_from_keyboard(error):  # Somebody is tired of waiting for the end.
                raise
            logger.exception("The relay failed on envelope %s.", envelope.id)
            if envelope.lease is not None:  # The table will show that nobody has it in hand.
                self.release(envelope)
            else:
                self._fail(envelope, TransportError(f"{type(error).__name__}: {error}"))
        finally:
            del running[key]

    def _deliver(self, envelope: Envelope, pool: Pool) -> None:
        if envelope.lease is not None and self._claims and not self._claims.set_out(envelope):
            return
        ending: Verdict | TransportError | None
        try:
            ending = self._carried(envelope, pool)
        except TransportError as error:
            ending = error
        if envelope.lease is not None and self._claims is not None:
            self._claims.settle(envelope, ending)
        elif isinstance(ending, TransportError):
            self._fail(envelope, ending)
        else:
            settle(self._app, envelope, ending)

    def _carried(self, envelope: Envelope, pool: Pool) -> Verdict | None:
        try:
            return self._carry(envelope, pool)
        except TransportError as error:
            # At the end, what waits in an outbox waits there for the next process.
            can_wait = envelope.lease is not None and pool.stopping.is_set()
            if can_wait or not error.unsent:
                raise
            if self._fallback is None and not pool.stopping.is_set():
                raise
            return self._fall_back(envelope, error, pool)

    def _run_remaining(self, pool: Pool) -> None:
        """Run in this thread what was put while the others were leaving."""
        self._give_back_deliveries(pool)
        for envelope in _drain(pool.queue):
            self._run_here(envelope, self._in_process)

    def _run_here(self, envelope: Envelope, transport: Transport) -> None:
        """Carry ``envelope`` in a thread that is not ours, and so must not see what goes wrong."""
        with self._guarded(envelope):
            settle(self._app, envelope, transport.send(envelope))

    def _carry(self, envelope: Envelope, pool: Pool) -> Verdict | None:
        """Send until the verdict is final, for no longer than a token lives."""
        deadline = time.monotonic() + self._config.max_age
        pause = _PAUSE
        while True:
            # A process that ends takes no requests any more, its own included.
            ending = pool.stopping.is_set()
            if ending and envelope.lease is not None:
                raise NotTaken("The process ends.")
            try:
                verdict = (self._in_process if ending else self._transport).send(envelope)
            except NotConsumed:
                if envelope.lease is not None:
                    raise
                if self._fallback is not None or time.monotonic() > deadline:
                    raise
            else:
                is_final = not isinstance(verdict, Verdict) or verdict.outcome not in _LATER
                if is_final or time.monotonic() > deadline:
                    return verdict
            pool.stopping.wait(pause * uniform(0.5, 1.5))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _fall_back(self, envelope: Envelope, error: TransportError, pool: Pool) -> Verdict | None:
        if not pool.stopping.is_set():
            self._warn(envelope, error)
        return (self._fallback or self._in_process).send(envelope)

    def _warn(self, envelope: Envelope, error: TransportError) -> None:
        if isinstance(error, AddressUnknown):
            if self._warned_of_address:
                return
            self._warned_of_address = True
        logger.warning("Envelope %s runs in this process instead: %s", envelope.id, error)

    def _on_full(self, envelope: Envelope, why: str) -> None:
        if self._fallback is None:
            self._fail(envelope, NotTaken(why))
            return
        logger.warning("Envelope %s runs in the request's own thread: %s", envelope.id, why)
        self._run_here(envelope, self._fallback)

    def _fail(self, envelope: Envelope, error: TransportError) -> None:
        send_in_context(task_failed, self._app, envelope=envelope, exception=error)


class Immediate:
    """The relay of tests: what is put travels before put returns, and what it raises is raised."""

    def __init__(self, app: Flask, transport: Transport) -> None:
        self._app = app
        self._transport = transport

    def reserve(self, envelope: Envelope, queue: str) -> Envelope | None:
        return None

    def release(self, envelope: Envelope) -> None: ...

    def wake(self) -> None: ...

    def start(self) -> None: ...

    def put(self, envelope: Envelope) -> None:
        verdict = self._transport.send(envelope)
        settle(self._app, envelope, verdict)
        if verdict is not None and verdict.outcome not in (Outcome.COMPLETED, Outcome.DISCARDED):
            raise TransportError(verdict.error or verdict.outcome)


def settle(app: Flask, envelope: Envelope, verdict: Verdict | None) -> None:
    """Report what the executor could not: it reports its own failures and successes."""
    if not isinstance(verdict, Verdict) or verdict.outcome in (Outcome.COMPLETED, Outcome.FAILED):
        return
    error = verdict.error or verdict.outcome
    if verdict.outcome is Outcome.DISCARDED:
        send_in_context(task_discarded, app, envelope=envelope, error=error)
    elif verdict.outcome is Outcome.RETRY:
        logger.error("Envelope %s asks for a retry, which needs an outbox.", envelope.id)
    else:
        send_in_context(task_failed, app, envelope=envelope, exception=TransportError(error))


class Pool:
    """The threads of one process and what they work on."""

    def __init__(self) -> None:
        # Looked up late, so that gevent's patch counts.
        self.queue: queue.SimpleQueue[Envelope | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.running: dict[object, Envelope] = {}
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.has_left = threading.Event()


def _too_late(doing: str, grace: float) -> str:
    return (
        f"It was still {doing} {grace:g} seconds after the process was told to end. "
        "Raise 'ASYNC_HOOKS_GRACE'."
    )


def _drain(waiting: queue.SimpleQueue[Envelope | None]) -> list[Envelope]:
    left: list[Envelope] = []
    while True:
        try:
            envelope = waiting.get_nowait()
        except queue.Empty:
            return left
        if envelope is not None:
            left.append(envelope)


def _stop_all() -> None:
    """Stop every relay of this process at once, each for as long as its app's grace."""
    relays = list(_relays)
    for relay in relays:
        if (pool := relay._pool.made()) is not None:
            pool.stopping.set()
    began = time.monotonic()
    for relay in relays:
        try:
            relay.stop(max(0.0, relay._config.grace - (time.monotonic() - began)))
        except Exception:
            logger.exception("The relay of %r could not be stopped.", relay._app.name)


atexit.register(_stop_all)
