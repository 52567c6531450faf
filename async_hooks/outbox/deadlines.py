"""Deadlines: a server that falls silent lets nobody wait for longer than they want to.

A driver waits for as long as the other machine keeps the connection open, and that one does so
though the database in it is frozen. Here a thread ends the connection at the deadline: the driver
sees that as a loss, whichever driver it is.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds between two looks, and how many find nothing before the thread ends.
_EVERY, _IDLE_LOOKS = 0.25, 40

#: The fewest seconds that a connection may take to be made.
_LEAST = 2

#: The drivers that take a limit for it.
_LIMITED = ("psycopg", "psycopg2", "pymysql", "mysqldb")


class _Step:
    """What one thread does until ``until``, on the connections ``drivers``."""

    __slots__ = ("drivers", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.drivers: list[Any] = []


class Deadlines:
    """The deadlines of the steps that the threads of one process take."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: set[_Step] = set()
        self._thread: threading.Thread | None = None
        self._local = threading.local()

    def run(self, until: float, step: Callable[[], T]) -> T:
        """Return what ``step`` does, on connections that end at ``until`` of the monotonic clock.

        A step within another has its own deadline.
        """
        before = getattr(self._local, "step", None)
        mine = self._local.step = _Step(until)
        try:
            return step()
        finally:
            self._local.step = before
            with self._lock:
                self._steps.discard(mine)

    @property
    def left(self) -> float | None:
        """The seconds that this thread's step has left, None if it has no deadline."""
        step: _Step | None = getattr(self._local, "step", None)
        return None if step is None else step.until - time.monotonic()

    def add(self, driver: Any) -> None:
        """Let this thread's step, if it takes one, use ``driver``."""
        step: _Step | None = getattr(self._local, "step", None)
        if step is None:
            return
        with self._lock:
            if driver not in step.drivers:
                step.drivers.append(driver)
            self._steps.add(step)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="async_hooks-deadlines", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # No more threads can be started: nobody watches.
                    self._thread = None

    def remove(self, driver: Any) -> bool:
        """Let the step be done with ``driver``; return false if that was ended by its deadline."""
        step: _Step | None = getattr(self._local, "step", None)
        if step is None:
            return True
        with self._lock:
            if driver not in step.drivers:
                return False
            step.drivers.remove(driver)
        return True

    def _watch(self) -> None:
        looks = 0
        while True:
            time.sleep(_EVERY)
            with self._lock:
                now = time.monotonic()
                for step in self._steps:
                    if step.until <= now:  # What has no socket yet, ends at a later look.
                        step.drivers = [each for each in step.drivers if not _end(each)]
                looks = 0 if self._steps else looks + 1
                if looks >= _IDLE_LOOKS:
                    self._thread = None
                    return


def connect_within(
    deadlines: Deadlines, dialect: Any, _: Any, args: list[Any], options: dict[str, Any]
) -> Any:
    """Connect as ``dialect`` would, within the deadline of this thread's step.

    The app's own connections are made with ``options`` as well, in SQLAlchemy 2.0: they stay as
    they are. Listeners that the app has added before may have changed them; later ones are not
    asked here.
    """
    left = deadlines.left
    if left is None or dialect.driver not in _LIMITED:
        return None  # SQLAlchemy connects.
    given = int(options.get("connect_timeout") or round(left))
    options = {**options, "connect_timeout": max(_LEAST, min(given, round(left)))}
    if dialect.driver != "pymysql":
        return dialect.connect(*args, **options)
    # It does not limit the time until the server's first word.
    driver = dialect.connect(*args, **options, defer_connect=True)
    deadlines.add(driver)
    driver.connect()
    return driver


def _end(driver: Any) -> bool:
    """End the connection of ``driver``, in which another thread may wait; false if it has none."""
    with suppress(Exception):
        # PyMySQL's and pg8000's sockets; the others' drivers are files themselves.
        end = getattr(driver, "_sock", None) or getattr(driver, "_usock", None) or driver
        with socket.socket(fileno=os.dup(end.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
        return True
    return False
