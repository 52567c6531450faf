"""The worker: a process that carries what waits in the outbox, without a web server.

Two processes. The parent only watches: whatever a receiver does to the child that runs it (a
segmentation fault, no more memory), the parent goes on, and so do the other deliveries, in a new
child. The child relays in process, each delivery as a fresh request through the app's WSGI entry.

Who dies: a child, and the lease of what it ran ends with its lifeline, so the next child counts a
crash and goes on. The parent, and the child finds its pipe closed and ends in order.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask

from .claims import Claims
from .errors import OutboxRequired
from .relay import Relay
from .signals import tell, worker_started, worker_stopped
from .state import KEY, State, state_of
from .task import needs_outbox
from .transports.in_process import InProcess

if TYPE_CHECKING:
    from .outbox.ledger import Ledger

#: Exit codes: all went well; an attempt failed (with ``once``); stopped at once by a second signal.
OK, FAILED, AT_ONCE = 0, 1, 130

#: A child's, when its quota is used up and there may be more to do.
_MORE = 75

#: Seconds between two children that died young, doubled from one to the next.
_PAUSE, _LONGEST_PAUSE = 0.1, 10.0

_ENDING = (signal.SIGTERM, signal.SIGINT)

#: What a child that was started anew, and not forked, finds its parent's pipe by.
CHILD = "ASYNC_HOOKS_WORKER_PIPE"

logger = logging.getLogger("async_hooks")


class Options(NamedTuple):
    """``queues`` are worked in that order, None means all as one. ``quota`` deliveries end a child.

    ``once`` ends after one delivery, ``drain`` when nothing more is due.
    """

    name: str
    queues: Sequence[str] | None = None
    concurrency: int = 1
    quota: int | None = None
    once: bool = False
    drain: bool = False


class Work:
    """The child's part: relays until it is told to end, or has done what it was to do."""

    def __init__(self, app: Flask, options: Options) -> None:
        state = state_of(app)
        if state.ledger is None:
            raise OutboxRequired(needs_outbox("The worker", repr(app.name)))
        self._app = app
        self._options = options
        self._over = threading.Event()
        self._is_used_up = False
        config = replace(state.config, concurrency=options.concurrency, relay=True)
        in_process = InProcess(app)
        ledger: Ledger = state.ledger  # type: ignore[assignment]
        self._claims = Claims(
            app,
            config,
            ledger,
            take=lambda envelope: self._relay.take(envelope),
            name=options.name,
            queues=options.queues,
            quota=options.quota,
            idle=self._is_idle,
        )
        self._relay = Relay(
            app,
            config,
            in_process,
            fallback=in_process,
            in_process=in_process,
            recall=lambda: None,
            claims=self._claims,
        )
        self._state: State = replace(state, relay=self._relay)

    def run(self) -> int:
        """Work until the end, and return the exit code."""
        options, app = self._options, self._app
        app.extensions[KEY] = self._state
        facts: dict[str, Any] = {"name": options.name, "queues": options.queues}
        tell(worker_started, app, **facts)
        self._relay.start()
        try:
            self._over.wait()
        finally:
            self._relay.stop()
            tell(worker_stopped, app, **facts)
        if options.once:
            return FAILED if self._claims.has_failed else OK
        return _MORE if self._is_used_up else OK

    def end(self) -> None:
        """Finish what runs, give back the rest."""
        self._over.set()

    def _is_idle(self, is_used_up: bool) -> None:
        self._is_used_up = is_used_up
        if is_used_up or self._options.drain or self._options.once:
            self._over.set()


class Child(NamedTuple):
    """A child's pid, and the end of a pipe that is open as long as its parent lives."""

    pid: int
    pipe: int


def supervise(start: Callable[[], Child], options: Options) -> int:
    """Keep a child at work, which ``start`` starts; return the worker's exit code."""
    pause = 0.0
    with _Told() as told:
        while not told.count:
            began = time.monotonic()
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # Until both can act on them.
            told.child = child = start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            code = _wait(child)
            told.child = None
            if told.count:
                return AT_ONCE if told.count > 1 else OK
            if code == _MORE:
                pause = 0.0
                continue
            if code >= 0 and (options.once or options.drain):
                return code
            what = f"by signal {-code}" if code < 0 else f"with code {code}"
            logger.error("Worker %s: process %s ended %s.", options.name, child.pid, what)
            is_young = time.monotonic() - began < _LONGEST_PAUSE
            pause = min(max(2 * pause, _PAUSE), _LONGEST_PAUSE) if is_young else 0.0
            again = time.monotonic() + pause
            while not told.count and time.monotonic() < again:
                time.sleep(0.05)
    return OK


class _Told:
    """Passes the signals that end the parent on to its child; the second one ends it at once."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Told:
        for number in _ENDING:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGTERM if self.count == 1 else signal.SIGKILL)


def _wait(child: Child) -> int:
    """Return how the child ended: its exit code, or minus the signal that killed it."""
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    return os.waitstatus_to_exitcode(status)


def forked(make_work: Callable[[], Work]) -> Child:
    """Start a child that shares what this process has loaded."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return Child(pid, writing)
    code = FAILED
    try:
        os.close(writing)
        code = work_as_child(make_work(), reading)
    except BaseException:
        logger.exception("The worker's process failed.")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def started_anew(command: Sequence[str]) -> Child:
    """Start a child that reads the code anew."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        environ = {**os.environ, CHILD: str(reading)}
        pid = os.posix_spawn(command[0], list(command), environ, setsigmask=())
    finally:
        os.close(reading)
    return Child(pid, writing)


def work_as_child(work: Work, pipe: int) -> int:
    """Work in this process, a child, until told to end or until the parent is gone."""

    def end_soon(*_: object) -> None:
        # A handler interrupts the thread that waits for the end, which must not wait for itself.
        threading.Thread(target=work.end, daemon=True).start()

    def end_with_parent() -> None:
        os.read(pipe, 1)
        work.end()

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # A terminal sends it to both; the parent tells us.
    signal.signal(signal.SIGTERM, end_soon)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    threading.Thread(target=end_with_parent, name="async_hooks-parent", daemon=True).start()
    return work.run()
