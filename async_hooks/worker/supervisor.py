"""Supervise a worker: a parent that only watches, and a child that runs deliveries.

The parent has not even loaded the app: whatever a receiver does to its process (a segmentation
fault, no memory left), the parent survives, and starts a new child for the other deliveries. The
child relays in process, each delivery as a fresh request through the app's WSGI entry.

If a child dies, its process lock is released and its claims end, so the next child counts a crash
and goes on. If the parent dies, the child ends in order.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

from .child import ENDING, flush, leave, work_as_child
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

#: The environment variable by which a child that was not forked finds its end of the pair, and the
#: exit code of the child before it, if that died.
CHILD = "ASYNC_HOOKS_WORKER_PIPE"

logger = logging.getLogger("async_hooks")

_EXIT_CODES: dict[Exit | None, int] = {
    Exit.DONE: OK,
    Exit.FAILED: FAILED,
    Exit.MISCONFIGURED: MISCONFIGURED,
}


class Child(NamedTuple):
    """A child's pid, and the parent's end of the pair, which stays open while the parent lives."""

    pid: int
    parent_end: int

    def said(self) -> Exit | None:
        """Return how the child, which is gone, said that it ends; None if it did not."""
        # What a receiver forked may still hold the other end: then nothing more comes, nor an end.
        os.set_blocking(self.parent_end, False)
        try:
            return Exit(int.from_bytes(os.read(self.parent_end, 2), "big"))
        except (OSError, ValueError):
            return None


def supervise(start: Callable[[int | None], Child], options: Options) -> int:
    """Keep one child running, made by ``start``; return the worker's exit code.

    ``start`` is given the exit code of the child before it, if that died and nobody was told.
    """
    pause, is_first = 0.0, True
    died: int | None = None
    with SignalForwarder(options.max_time) as forwarder:
        while not forwarder.is_ending:
            began = time.monotonic()
            ending, code = _run_child(partial(start, died), forwarder)
            if forwarder.is_ending:
                return AT_ONCE if forwarder.count > 1 else _EXIT_CODES.get(ending, OK)
            if options.once and died is not None:
                return FAILED
            is_misconfigured = ending is Exit.MISCONFIGURED
            never_worked = is_misconfigured and is_first
            if ending in _EXIT_CODES and (options.ends_by_itself or never_worked):
                return _EXIT_CODES[ending]
            is_first = False
            if ending in (Exit.RESTART, Exit.DONE):
                pause, died = 0.0, None
                continue
            logger.error("Worker %r: its process ended %s.", options.name, _in_words(code))
            if options.once and code is None:
                return FAILED
            if ending is None and code is not None:
                died = code
            is_early = time.monotonic() - began < _EARLY
            longest = _LONGEST_PAUSE_MISCONFIGURED if is_misconfigured else _LONGEST_PAUSE
            pause = min(max(2 * pause, _PAUSE), longest) if is_early else 0.0
            again = time.monotonic() + pause
            while not forwarder.is_ending and time.monotonic() < again:
                time.sleep(0.05)
    return OK


def _run_child(
    start: Callable[[], Child], forwarder: SignalForwarder
) -> tuple[Exit | None, int | None]:
    """Return how a child said that it ends, None if it did not, and its exit code.

    That is negative if a signal ended it, and None if no child could be started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # Until it can be forwarded.
    try:
        if forwarder.is_ending:
            return Exit.DONE, None
        forwarder.child = child = start()
        if forwarder.is_ending:  # Another thread got the signal, while this one blocked it.
            forwarder.forward(child)
    except OSError:
        logger.exception("Worker: no process can be started.")
        return None, None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child.pid, 0)
    forwarder.child = None
    code = os.waitstatus_to_exitcode(status)
    ending = child.said()
    os.close(child.parent_end)
    return ending if ending == code else None, code


def _in_words(code: int | None) -> str:
    if code is None:
        return "before it began"
    return f"by signal {-code}" if code < 0 else f"with code {code}"


class SignalForwarder:
    """Forwards the signals that end the parent to its child; the second one kills the child.

    After ``max_time`` seconds, its own alarm ends the child as the first one does.
    """

    def __init__(self, max_time: float | None = None) -> None:
        self.child: Child | None = None
        self.count = 0
        self.is_ending = False
        self._max_time = max_time
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalForwarder:
        for number in ENDING:
            # A signal that is ignored stays ignored, as under nohup or a shell's '&'.
            if (
                number in (signal.SIGTERM, signal.SIGALRM)
                or signal.getsignal(number) != signal.SIG_IGN
            ):
                self._before[number] = signal.signal(number, self._handle)
        # If it were ignored, as whoever starts us may have it, no child could be waited for.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._max_time is not None:
            signal.setitimer(signal.ITIMER_REAL, self._max_time)  # No child inherits it.
        return self

    def __exit__(self, *_: object) -> None:
        if self._max_time is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_ending = True
        self.count += number != signal.SIGALRM
        if self.child is not None:
            self.forward(self.child)

    def forward(self, child: Child) -> None:
        with suppress(ProcessLookupError):  # It has ended just now.
            os.kill(child.pid, signal.SIGTERM if self.count < 2 else signal.SIGKILL)


def forked(make_work: Callable[[], Work], died: int | None) -> Child:
    """Start a child by a fork: it shares what this process has loaded."""
    flush()
    parent_end, child_end = _pair()
    try:
        pid = os.fork()
    except OSError:
        os.close(child_end)
        os.close(parent_end)
        raise
    if pid:
        os.close(child_end)
        return Child(pid, parent_end)
    code = FAILED
    try:
        os.close(parent_end)
        code = work_as_child(make_work, child_end, died)
    except BaseException:
        logger.exception("Worker: its process failed.")
    finally:
        leave(code)


def started_anew(command: Sequence[str], died: int | None) -> Child:
    """Start a child by ``command``: it loads the code as it is now."""
    parent_end, child_end = _pair()
    os.set_inheritable(child_end, True)
    try:
        facts = [child_end] if died is None else [child_end, died]
        environ = {**os.environ, CHILD: " ".join(map(str, facts))}
        # Blocked while Python starts, because it would answer them with a traceback.
        mask = (signal.SIGINT, signal.SIGHUP)
        pid = os.posix_spawn(command[0], list(command), environ, setsigmask=mask)
    except OSError:
        os.close(parent_end)
        raise
    finally:
        os.close(child_end)
    return Child(pid, parent_end)


def _pair() -> tuple[int, int]:
    """Return the file descriptors of a socket pair, which no program that is started inherits."""
    parent_end, child_end = socket.socketpair()
    return parent_end.detach(), child_end.detach()
