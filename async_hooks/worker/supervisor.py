"""Supervise a worker: a parent that only watches, and a child that runs deliveries.

The parent has not even loaded the app: whatever a receiver does to its process (a segmentation
fault, no memory left), the parent survives, and starts a new child for the other deliveries. The
child relays in process, each delivery as a fresh request through the app's WSGI entry.

If a child dies, its process lock is released and its claims end, so the next child counts a crash
and goes on. If the parent dies, the child finds its pipe closed and ends in order.
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
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import click

from ..errors import AsyncHooksError, OutboxUnavailable
from ..log import one_line
from ..texts import log_exception
from .worker import Exit, Options, Work

#: Exit codes: all went well; an attempt failed (with ``once``), or the database can't be used (with
#: ``drain`` too); there is no app or no outbox; ended at once by a second signal.
OK, FAILED, MISCONFIGURED, AT_ONCE = 0, 1, 2, 130

#: Seconds before the next child if one died early, doubled from one to the next. After a crash the
#: other deliveries wait only shortly, because crashes are limited; an app that can't be loaded may
#: stay so.
_PAUSE, _LONGEST_PAUSE, _LONGEST_PAUSE_MISCONFIGURED = 0.1, 2.0, 10.0

#: A child that died within these seconds died early.
_EARLY = 10.0

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: The environment variable by which a child that was not forked finds its parent's pipe.
CHILD = "ASYNC_HOOKS_WORKER_PIPE"

logger = logging.getLogger("async_hooks")

_EXIT_CODES: dict[int, int] = {
    Exit.DONE: OK,
    Exit.FAILED: FAILED,
    Exit.MISCONFIGURED: MISCONFIGURED,
}


class Child(NamedTuple):
    """A child's pid, and the end of a pipe that stays open while its parent lives."""

    pid: int
    pipe: int


def supervise(start: Callable[[], Child], options: Options) -> int:
    """Keep one child running, made by ``start``; return the worker's exit code."""
    pause, is_first = 0.0, True
    with SignalForwarder() as forwarder:
        while not forwarder.count:
            began = time.monotonic()
            code = _code_of_child(start, forwarder)
            if forwarder.count:
                return AT_ONCE if forwarder.count > 1 else _EXIT_CODES.get(code, OK)
            never_worked = code == Exit.MISCONFIGURED and is_first
            if code in _EXIT_CODES and (options.ends_by_itself or never_worked):
                return _EXIT_CODES[code]
            is_first = False
            if code in (Exit.RESTART, Exit.DONE):
                pause = 0.0
                continue
            what = f"by signal {-code}" if code < 0 else f"with code {code}"
            logger.error("Worker %r: its process ended %s.", options.name, what)
            if options.once:
                return FAILED
            is_early = time.monotonic() - began < _EARLY
            is_misconfigured = code == Exit.MISCONFIGURED
            longest = _LONGEST_PAUSE_MISCONFIGURED if is_misconfigured else _LONGEST_PAUSE
            pause = min(max(2 * pause, _PAUSE), longest) if is_early else 0.0
            again = time.monotonic() + pause
            while not forwarder.count and time.monotonic() < again:
                time.sleep(0.05)
    return OK


def _code_of_child(start: Callable[[], Child], forwarder: SignalForwarder) -> int:
    """Return how a child ended: its exit code, or minus the signal that killed it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # Until it can be forwarded.
    try:
        if forwarder.count:
            return Exit.DONE
        forwarder.child = child = start()
        if forwarder.count:  # Another thread got the signal, while this one blocked it.
            forwarder.forward(child)
    except OSError:
        logger.exception("Worker: no process can be started.")
        return FAILED
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child.pid, 0)
    forwarder.child = None
    os.close(child.pipe)
    return os.waitstatus_to_exitcode(status)


class SignalForwarder:
    """Forwards the signals that end the parent to its child; the second one kills the child."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalForwarder:
        for number in _ENDING:
            # A signal that is ignored stays ignored, as under nohup or a shell's '&'.
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        # If it were ignored, as whoever starts us may have it, no child could be waited for.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.child is not None:
            self.forward(self.child)

    def forward(self, child: Child) -> None:
        with suppress(ProcessLookupError):  # It has ended just now.
            os.kill(child.pid, signal.SIGTERM if self.count == 1 else signal.SIGKILL)


def forked(make_work: Callable[[], Work]) -> Child:
    """Start a child by a fork: it shares what this process has loaded."""
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
        logger.exception("Worker: its process failed.")
    finally:
        _leave(code)


def started_anew(command: Sequence[str]) -> Child:
    """Start a child by ``command``: it loads the code as it is now."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        environ = {**os.environ, CHILD: str(reading)}
        # Blocked while Python starts, because it would answer them with a traceback.
        mask = (signal.SIGINT, signal.SIGHUP)
        pid = os.posix_spawn(command[0], list(command), environ, setsigmask=mask)
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return Child(pid, writing)


def work_as_child(make_work: Callable[[], Work], pipe: int) -> int:
    """Run deliveries in this process, a child, until it is told to end or its parent dies."""
    os.set_inheritable(pipe, False)
    # Ignored, because a terminal sends them to both processes: the parent forwards them.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Nothing runs yet.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Output is seen at once, also in a file.
            stream.reconfigure(line_buffering=True)
    try:
        work = make_work()
    except BaseException as error:
        _show(error)
        return Exit.MISCONFIGURED

    def end_soon(*_: object) -> None:
        # In a thread, because a handler interrupts the thread that waits for the end.
        threading.Thread(target=work.end, daemon=True).start()

    def end_with_parent() -> None:
        os.read(pipe, 1)
        work.end()

    signal.signal(signal.SIGTERM, end_soon)
    threading.Thread(target=end_with_parent, name="async_hooks-parent", daemon=True).start()
    try:
        code = work.run()
    except OutboxUnavailable as error:
        _show(error)
        return Exit.FAILED
    if work.is_overdue:  # The interpreter's own exit would wait for it once more.
        _leave(code)
    return code


def _show(error: BaseException) -> None:
    """Say why there is no work: in a line, if the error is made for that."""
    if isinstance(error, AsyncHooksError):
        error = click.ClickException(one_line(error))
    if isinstance(error, click.ClickException):
        error.show()
    else:
        log_exception(logger, error, "Worker: the app can't be loaded.")


def _leave(code: int) -> NoReturn:
    """End this process at once, whatever still runs in it."""
    try:
        _flush()
    finally:
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
