"""Calls at their time: one daemon thread for each process, whatever apps it has, made when needed.

The thread sleeps until the first call is due. Where no thread can be started, no call is made. A
call belongs to who asked for it until it is due: a cancelled one may still be made at that moment.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from .per_process import PerProcess
from .threads import started

logger = logging.getLogger("async_hooks")

_NEVER = float("inf")


class Call:
    """A call that waits for its time, ``due`` on the monotonic clock."""

    __slots__ = ("due", "make")

    def __init__(self, due: float, make: Callable[[], object]) -> None:
        self.due = due
        self.make = make


class _Timer:
    """The calls of one process. Any thread may add and cancel: each is a single step of a set."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        #: Until when the thread sleeps; whoever adds an earlier call wakes it.
        self._wakes_at = _NEVER
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._is_started = False

    def add(self, call: Call) -> None:
        self._calls.add(call)
        if call.due < self._wakes_at:
            with self._lock:
                if not self._is_started:
                    self._is_started = started("async_hooks-timer", self._run) is not None
            self._woken.set()

    def discard(self, call: Call) -> None:
        self._calls.discard(call)

    def _run(self) -> None:
        while True:
            self._woken.clear()
            self._wakes_at = _NEVER  # First, so that what is added from here on wakes us.
            now = time.monotonic()
            calls = list(self._calls)
            for call in calls:
                if call.due <= now:
                    self._calls.discard(call)
                    try:
                        call.make()
                    except Exception:
                        logger.exception("A call of the timer failed.")
            self._wakes_at = min((call.due for call in calls if call.due > now), default=_NEVER)
            sleep = self._wakes_at - time.monotonic()
            self._woken.wait(None if sleep == _NEVER else max(0.0, sleep))


_timers = PerProcess(_Timer)


def call_later(seconds: float, make: Callable[[], object]) -> Call:
    """Call ``make`` in ``seconds``, in the timer's thread, where it must not wait for anything."""
    call = Call(time.monotonic() + seconds, make)
    _timers[os.getpid()].add(call)
    return call


def cancel(call: Call) -> None:
    """Let ``call`` not be made."""
    _timers[os.getpid()].discard(call)
