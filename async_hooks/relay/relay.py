"""The relay: threads that take envelopes from a source, and hand each to a transport.

Who owns what. An envelope belongs to the source until a thread takes it, then to that thread until
the transport's verdict, which goes back to the source. The threads are daemons, made at the first
use in each process; a forked child makes its own. When the process dies, what its source keeps in
memory is lost, and what an outbox keeps is not. When it ends in order, ``stop`` runs what only
memory has.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from random import uniform
from typing import Any, ClassVar, Generic, TypeVar

from flask import Flask

from ..config import Config
from ..envelope import Envelope
from ..errors import AddressUnknown, NotConsumed, NotTaken, TransportError
from ..host.per_process import PerProcess
from ..log import ids, one_line
from ..signals import send_in_context, task_overdue
from ..state import Result, Source, Transport
from ..texts import error_text, log_exception
from ..verdict import Outcome, Verdict
from ..wsgi import is_from_keyboard
from .pool import Pool
from .runs import Running

S = TypeVar("S", bound=Source)

#: Outcomes that say "later": the same envelope is sent again with a fresh token.
_LATER = (Outcome.BUSY, Outcome.EXPIRED)

#: Seconds between two such tries: doubled from the first to the second, with jitter.
_PAUSE, _LONGEST_PAUSE = 0.02, 0.2

logger = logging.getLogger("async_hooks")
_relays: weakref.WeakSet[Relay[Any]] = weakref.WeakSet()


class Relay(Generic[S]):
    """Carries the envelopes of the source that ``make_source`` makes, one for each process.

    By ``transport``, or else ``fallback``. When the process ends, its server takes no more
    requests: ``close_open`` makes open ones submit what they put off, ``cancel_unstarted`` takes
    back what the transport has in flight and its server will not begin, and ``in_process`` runs
    what is left.
    """

    #: Whether what waits in the source outlives the process.
    is_durable: ClassVar[bool] = False

    def __init__(
        self,
        app: Flask,
        config: Config,
        make_source: Callable[[], S],
        transport: Transport,
        *,
        fallback: Transport | None,
        in_process: Transport,
        cancel_unstarted: Callable[[], None],
        close_open: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._config = config
        self._transport = transport
        self._fallback = fallback
        self._in_process = in_process
        self._cancel_unstarted = cancel_unstarted
        self._close_open = close_open
        self._pool = PerProcess(lambda: Pool(app, make_source(), config.concurrency))
        self._warned_of_address = False
        _relays.add(self)

    @property
    def source(self) -> S:
        """The source of this process."""
        return self._pool[os.getpid()].source

    def stop(self, grace: float | None = None) -> None:
        """Run what waits and let what runs finish, for at most ``grace`` seconds.

        What waits in an outbox can wait there: it goes back.
        """
        grace = self._config.grace if grace is None else grace
        # Without an outbox, only open requests may know of the first launches.
        if self.is_durable and os.getpid() not in self._pool:
            return
        pool = self._pool[os.getpid()]
        pool.stopping.set()
        deadline = time.monotonic() + grace
        self._close_open()
        pool.source.stop()
        self._cancel_unstarted()
        for thread in list(pool.threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        # What is submitted from now on, its own thread runs; what was submitted before, this one.
        pool.has_left.set()
        if time.monotonic() < deadline:
            self._run_remaining(pool)
        while pool.running and time.monotonic() < deadline:
            time.sleep(0.01)
        while (envelope := pool.source.next()) is not None:
            pool.source.settle(envelope, NotTaken(_too_late("waiting", grace)))
        error = TransportError(_too_late("on its way", grace))
        pool.source.end(list(pool.running.values()), error)

    def lend(self, thread: threading.Thread) -> None:
        """Start a thread in place of ``thread``, if it is ours: an overdue run keeps it."""
        pool = self._pool.get(os.getpid())
        if pool is not None and thread in pool.threads and not pool.stopping.is_set():
            self._start(pool)

    def _start(self, pool: Pool[S]) -> bool:
        """Start the threads that the pool lacks; tell whether there is one."""
        loaded: Any = sys.modules.get("multiprocessing")
        is_first = not pool.threads
        has_some = pool.start(partial(self._work, pool))
        if is_first and has_some and loaded is not None and loaded.parent_process() is not None:
            # A child of multiprocessing, which has loaded that, ends without atexit.
            from multiprocessing.util import Finalize

            Finalize(self, self.stop, exitpriority=0)
        return has_some

    def _work(self, pool: Pool[S]) -> None:
        carry = partial(self._carry, pool)
        while (envelope := pool.source.next()) is not None:
            self._deliver(pool, envelope, carry)
            if pool.leave():
                return

    def _run_remaining(self, pool: Pool[S]) -> None:
        """Run in this thread what was submitted while the others were leaving."""
        while (envelope := pool.source.next()) is not None:
            self._deliver(pool, envelope, self._in_process.send)

    def _deliver(
        self, pool: Pool[S], envelope: Envelope, send: Callable[[Envelope], Verdict | None]
    ) -> None:
        """Settle ``envelope`` by what ``send`` returns; let nothing out, which is its failure.

        Meanwhile a stop knows that it is on its way.
        """
        key = object()
        pool.running[key] = envelope
        try:
            result: Result
            try:
                result = send(envelope)
            except TransportError as error:
                result = error
            except Exception as error:  # Of a transport of the user's.
                what = "Envelope %s: its transport failed."
                log_exception(logger, error, what, envelope.id, extra=ids(envelope))
                result = TransportError(error_text(error))
            pool.source.settle(envelope, result)
        except BaseException as error:
            if is_from_keyboard(error):  # Somebody is tired of waiting for the end.
                raise
            what = "Envelope %s: the relay failed."
            log_exception(logger, error, what, envelope.id, extra=ids(envelope))
            pool.source.lose(envelope, error)
        finally:
            del pool.running[key]

    def _carry(self, pool: Pool[S], envelope: Envelope) -> Verdict | None:
        """Send ``envelope`` by the transport, and if it never left, by what else there is."""
        try:
            return self._send(pool, envelope)
        except TransportError as error:
            way = self._fallback
            if pool.stopping.is_set():  # What waits in an outbox waits there for the next process.
                way = None if self.is_durable else self._in_process
            if way is None or not error.unsent:
                raise
            if not pool.stopping.is_set():
                self._warn(envelope, error)
            return way.send(envelope)

    def _send(self, pool: Pool[S], envelope: Envelope) -> Verdict | None:
        """Send until the verdict is final, for no longer than a token lives."""
        deadline = time.monotonic() + self._config.max_age
        pause = _PAUSE
        while True:
            # A process that ends takes no requests any more, its own included.
            stopping = pool.stopping.is_set()
            if stopping and self.is_durable:
                raise NotTaken("The process ends.")
            try:
                verdict = (self._in_process if stopping else self._transport).send(envelope)
            except NotConsumed:
                has_other_way = self.is_durable or self._fallback is not None
                if has_other_way or time.monotonic() > deadline:
                    raise
            else:
                is_final = not isinstance(verdict, Verdict) or verdict.outcome not in _LATER
                if is_final or time.monotonic() > deadline:
                    return verdict
            pool.stopping.wait(pause * uniform(0.5, 1.5))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _warn(self, envelope: Envelope, error: TransportError) -> None:
        if isinstance(error, AddressUnknown):
            if self._warned_of_address:
                return
            self._warned_of_address = True
        what = "Envelope %s runs in this process instead: %s"
        logger.warning(what, envelope.id, one_line(error), extra=ids(envelope))


def report_overdue(app: Flask, run: Running) -> None:
    """Say that ``run`` of ``app`` is overdue, and lend whoever sends it another thread."""
    for relay in list(_relays):
        relay.lend(run.thread)
    send_in_context(task_overdue, app, envelope=run.envelope)


def _too_late(doing: str, grace: float) -> str:
    return (
        f"It was still {doing} {grace:g} seconds after the process was told to end. "
        "Raise 'ASYNC_HOOKS_GRACE'."
    )


def _stop_all() -> None:
    """Stop every relay of this process at once, each for as long as its app's grace."""
    relays = list(_relays)
    for relay in relays:
        if (pool := relay._pool.get(os.getpid())) is not None:
            pool.stopping.set()
    began = time.monotonic()
    for relay in relays:
        try:
            relay.stop(max(0.0, relay._config.grace - (time.monotonic() - began)))
        except Exception:
            logger.exception("The relay of %r could not be stopped.", relay._app.name)


atexit.register(_stop_all)
