"""The worker: a process that carries what waits in the outbox, without a web server.

Two processes. The parent only watches, and has not even loaded the app: whatever a receiver does
to the child that runs it (a segmentation fault, no more memory), the parent goes on, and so do the
other deliveries, in a new child. The child relays in process, each delivery as a fresh request
through the app's WSGI entry.

Who dies: a child, and the lease of what it ran ends with its lifeline, so the next child counts a
crash and goes on. The parent, and the child finds its pipe closed and ends in order.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click
from flask import Flask

from .claims import POLL, Claims
from .envelope import Envelope
from .errors import AsyncHooksError, OutboxRequired, OutboxUnavailable
from .log import one_line
from .receivers import timeout_of
from .relay import Relay
from .signals import tell, worker_started, worker_stopped
from .state import KEY, State, state_of
from .task import needs_outbox
from .transports.in_process import InProcess
from .verdict import Outcome, Verdict

if TYPE_CHECKING:
    from .outbox.ledger import Ledger

#: Exit codes: all went well; an attempt failed (with ``once``), or the database can't be used (with
#: ``drain`` too); there is no app or no outbox; stopped at once by a second signal.
OK, FAILED, UNFIT, AT_ONCE = 0, 1, 2, 130

#: Seconds between two children that died young, doubled from one to the next.
_PAUSE, _LONGEST_PAUSE = 0.1, 10.0

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: What a child that was started anew, and not forked, finds its parent's pipe by.
CHILD = "ASYNC_HOOKS_WORKER_PIPE"

logger = logging.getLogger("async_hooks")


class Ending(IntEnum):
    """How a child says that it ended in order, and why. By another code, a receiver ended it."""

    DONE = 80
    FAILED = 81
    UNFIT = 82
    MORE = 83


_EXIT_CODES: dict[int, int] = {
    Ending.DONE: OK,
    Ending.FAILED: FAILED,
    Ending.UNFIT: UNFIT,
}


class Options(NamedTuple):
    """``queues`` are worked in that order, None means all as one. ``quota`` deliveries end a child.

    ``once`` ends after one delivery, ``drain`` when nothing more is due. ``fresh`` says that a
    delivery is for a child that has not waited for it: the code may have changed meanwhile.
    """

    name: str
    queues: Sequence[str] | None = None
    concurrency: int = 1
    quota: int | None = None
    once: bool = False
    drain: bool = False
    fresh: bool = False

    @property
    def ends_by_itself(self) -> bool:
        return self.once or self.drain


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
        self._has_waited = False
        config = replace(state.config, concurrency=options.concurrency, relay=True)
        self._ledger: Ledger = state.ledger  # type: ignore[assignment]
        in_process = _InThread(app, self._ledger)
        self._claims = Claims(
            app,
            config,
            self._ledger,
            take=self._take,
            name=options.name,
            queues=options.queues,
            quota=options.quota,
            idle=self._is_idle,
        )
        self._relay = _InOrder(
            app,
            config,
            in_process,
            fallback=in_process,
            in_process=in_process,
            recall=lambda: None,
            claims=self._claims,
        )
        self._state: State = replace(state, relay=self._relay)

    def run(self) -> Ending:
        """Work until the end, and say which it was.

        :raises OutboxUnavailable: if that can't be used at the start, and there is no waiting.
        """
        options, app = self._options, self._app
        app.extensions[KEY] = self._state
        if options.ends_by_itself:
            self._ledger.paused()
        facts: dict[str, Any] = {"name": options.name, "queues": options.queues}
        tell(worker_started, app, **facts)
        self._relay.start()
        try:
            while not (self._over.wait(POLL) or self._is_stuck()):
                pass
        finally:
            is_stuck = self._is_stuck()
            self._relay.stop(0 if is_stuck else None)
            tell(worker_stopped, app, **facts)
        if is_stuck:
            logger.error("Worker %s: what runs does not end; a new process.", options.name)
        if options.once:
            return Ending.FAILED if is_stuck or self._claims.has_failed else Ending.DONE
        return Ending.MORE if is_stuck or self._is_used_up else Ending.DONE

    def end(self) -> None:
        """Finish what runs, give back the rest."""
        self._over.set()

    @property
    def is_overdue(self) -> bool:
        """Whether something still runs, that a stop did not wait for."""
        return bool(self._ledger.me.running)

    def _take(self, envelope: Envelope) -> None:
        if self._options.fresh and self._has_waited:
            self._claims.give_back([envelope])
            self._is_used_up = True
            self._over.set()
        else:
            self._relay.take(envelope)

    def _is_idle(self, is_used_up: bool) -> None:
        self._is_used_up = is_used_up
        self._has_waited = True
        if is_used_up or self._options.ends_by_itself:
            self._over.set()

    def _is_stuck(self) -> bool:
        """Tell whether every thread is busy with a run that was given up: none can be stopped."""
        runs = list(self._ledger.me.running.values())
        return len(runs) >= self._options.concurrency and all(
            time.monotonic() - since > timeout_of(self._state, envelope) + 5 * POLL
            for envelope, since in runs
        )


class _InOrder(Relay):
    """A worker's relay: what is launched in a run waits for its turn, in its own queue."""

    def reserve(self, envelope: Envelope, queue: str) -> Envelope | None:
        return None


class _InThread(InProcess):
    """In a thread, where no signal arrives, a KeyboardInterrupt is the receiver's own."""

    def __init__(self, app: Flask, ledger: Ledger) -> None:
        super().__init__(app)
        self._ledger = ledger

    def send(self, envelope: Envelope) -> Verdict:
        try:
            return super().send(envelope)
        except KeyboardInterrupt as error:
            verdict = Verdict(Outcome.FAILED, f"KeyboardInterrupt: {error}")
            self._ledger.end(envelope, verdict)
            return verdict


class Child(NamedTuple):
    """A child's pid, and the end of a pipe that is open as long as its parent lives."""

    pid: int
    pipe: int


def supervise(start: Callable[[], Child], options: Options) -> int:
    """Keep a child at work, which ``start`` starts; return the worker's exit code."""
    pause, is_first = 0.0, True
    with _Told() as told:
        while not told.count:
            began = time.monotonic()
            code = _code_of_child(start, told)
            if told.count:
                return AT_ONCE if told.count > 1 else _EXIT_CODES.get(code, OK)
            is_unfit = code == Ending.UNFIT and is_first
            if code in _EXIT_CODES and (options.ends_by_itself or is_unfit):
                return _EXIT_CODES[code]
            is_first = False
            if code in (Ending.MORE, Ending.DONE):
                pause = 0.0
                continue
            what = f"by signal {-code}" if code < 0 else f"with code {code}"
            logger.error("The process of worker %r ended %s.", options.name, what)
            if options.once:
                return FAILED
            is_young = time.monotonic() - began < _LONGEST_PAUSE
            pause = min(max(2 * pause, _PAUSE), _LONGEST_PAUSE) if is_young else 0.0
            again = time.monotonic() + pause
            while not told.count and time.monotonic() < again:
                time.sleep(0.05)
    return OK


def _code_of_child(start: Callable[[], Child], told: _Told) -> int:
    """Return how a child ended: its exit code, or minus the signal that killed it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # Until it can be told.
    try:
        if told.count:
            return Ending.DONE
        told.child = child = start()
    except OSError:
        logger.exception("No process could be started.")
        return FAILED
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Until it is reaped, its pid is nobody else's.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    told.child = None
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    return os.waitstatus_to_exitcode(status)


class _Told:
    """Passes the signals that end the parent on to its child; the second one ends it at once."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Told:
        for number in _ENDING:
            # What nohup, or a shell's '&', has the process ignore stays ignored.
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        # Whoever starts us may ignore it; then there would be nothing to wait for.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGTERM if self.count == 1 else signal.SIGKILL)


def forked(make_work: Callable[[], Work]) -> Child:
    """Start a child that shares what this process has loaded."""
    _flush()
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid:
        os.close(reading)
        return Child(pid, writing)
    code = FAILED
    try:
        os.close(writing)
        code = work_as_child(make_work, reading)
    except BaseException:
        logger.exception("The worker's process failed.")
    finally:
        _leave(code)


def started_anew(command: Sequence[str]) -> Child:
    """Start a child that reads the code anew."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        environ = {**os.environ, CHILD: str(reading)}
        # Blocked as long as Python starts, which would make a traceback of it.
        mask = (signal.SIGINT, signal.SIGHUP)
        pid = os.posix_spawn(command[0], list(command), environ, setsigmask=mask)
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return Child(pid, writing)


def work_as_child(make_work: Callable[[], Work], pipe: int) -> int:
    """Work in this process, a child, until told to end or until the parent is gone."""
    os.set_inheritable(pipe, False)
    # A terminal sends these to both, and to what a receiver started; the parent tells us.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # There is nothing to finish yet.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # What is printed is seen, also in a file.
            stream.reconfigure(line_buffering=True)
    work = _made(make_work)
    if work is None:
        return Ending.UNFIT

    def end_soon(*_: object) -> None:
        # A handler interrupts the thread that waits for the end, which must not wait for itself.
        threading.Thread(target=work.end, daemon=True).start()

    def end_with_parent() -> None:
        os.read(pipe, 1)
        work.end()

    signal.signal(signal.SIGTERM, end_soon)
    threading.Thread(target=end_with_parent, name="async_hooks-parent", daemon=True).start()
    try:
        code = work.run()
    except OutboxUnavailable as error:
        click.ClickException(one_line(error)).show()
        return Ending.FAILED
    if work.is_overdue:  # An orderly end of the interpreter would wait for it once more.
        _leave(code)
    return code


def _made(make_work: Callable[[], Work]) -> Work | None:
    """Return the work, or say why there is none to be done."""
    try:
        return make_work()
    except click.ClickException as error:
        error.show()
    except AsyncHooksError as error:
        click.ClickException(one_line(error)).show()
    except BaseException:
        logger.exception("The app can't be loaded.")
    return None


def _leave(code: int) -> NoReturn:
    """End this process, whatever still runs in it."""
    try:
        _flush()
    finally:
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
