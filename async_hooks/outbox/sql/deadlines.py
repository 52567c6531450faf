"""Deadlines: a server that falls silent lets nobody wait for longer than they want to.

A driver waits for as long as the other machine keeps the connection open, and that one does so
though the database in it is frozen. Here the timer ends the connection at the deadline: the driver
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

from ...host.timer import Call, call_later, cancel

T = TypeVar("T")

#: Seconds until the next look at what had no socket yet, and until the first at what comes late.
_PAUSE = 0.25

#: The fewest seconds that a connection may take to be made.
_LEAST = 2

#: The drivers that take a limit for it.
_LIMITED = ("psycopg", "psycopg2", "pymysql", "mysqldb")


class _Step:
    """What one thread does until ``until``, and the connections that it uses."""

    __slots__ = ("_call", "_drivers", "_lock", "_until")

    def __init__(self, until: float) -> None:
        self._until = until
        self._drivers: list[Any] = []
        self._lock = threading.Lock()
        self._call: Call | None = None

    @property
    def left(self) -> float:
        return self._until - time.monotonic()

    def add(self, driver: Any) -> None:
        with self._lock:
            if driver not in self._drivers:
                self._drivers.append(driver)
        if self._call is None:
            self._watch()

    def remove(self, driver: Any) -> bool:
        with self._lock:
            if driver not in self._drivers:
                return False
            self._drivers.remove(driver)
        return True

    def end(self) -> None:
        with self._lock:
            self._drivers.clear()  # What the timer does at this moment finds none.
        if self._call is not None:
            cancel(self._call)

    def _watch(self) -> None:
        self._call = call_later(max(self.left, _PAUSE), self._cut)

    def _cut(self) -> None:
        """End the connections, in the timer's thread."""
        self._call = None  # First, so that what is added from here on is looked at.
        with self._lock:
            self._drivers = [each for each in self._drivers if not _end(each)]
        if self._drivers:
            self._watch()


class Deadlines:
    """The deadlines of the steps that the threads of one process take."""

    def __init__(self) -> None:
        self._local = threading.local()  # Not a base class: gevent may patch it after the import.

    def run(self, until: float, step: Callable[[], T]) -> T:
        """Return what ``step`` does, on connections that end at ``until`` of the monotonic clock.

        A step within another has its own deadline.
        """
        before = self._step
        mine = self._local.step = _Step(until)
        try:
            return step()
        finally:
            self._local.step = before
            mine.end()

    @property
    def left(self) -> float | None:
        """The seconds that this thread's step has left, None if it has no deadline."""
        step = self._step
        return None if step is None else step.left

    def add(self, driver: Any) -> None:
        """Let this thread's step, if it takes one, use ``driver``."""
        step = self._step
        if step is not None:
            step.add(driver)

    def remove(self, driver: Any) -> bool:
        """Let the step be done with ``driver``; return false if that was ended by its deadline."""
        step = self._step
        return step is None or step.remove(driver)

    @property
    def _step(self) -> _Step | None:
        return getattr(self._local, "step", None)


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
