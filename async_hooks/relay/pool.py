"""The threads of one process that a source feeds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from flask import Flask

from ..envelope import Envelope
from ..host.threads import started
from ..state import Source, state_of

S = TypeVar("S", bound=Source)


class Pool(Generic[S]):
    """A source, the threads that it feeds, and what they work on.

    There are ``concurrency`` threads, and one more for each that an overdue run keeps, at most as
    many more. A thread belongs to the envelope that it carries, until that has come to an end.
    """

    def __init__(self, app: Flask, source: S, concurrency: int) -> None:
        self.source = source
        self.threads: list[threading.Thread] = []
        self.running: dict[object, Envelope] = {}
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.has_left = threading.Event()
        self._app = app
        self._concurrency = concurrency

    def start(self, work: Callable[[], None]) -> bool:
        """Start the threads that are lacking; tell whether there is one."""
        with self.lock:
            for number in range(len(self.threads), self._size()):
                thread = started(f"async_hooks-{self._app.name}-{number}", work)
                if thread is not None:
                    self.threads.append(thread)
        return bool(self.threads)

    def leave(self) -> bool:
        """Let this thread leave if there are too many; tell whether it has left."""
        if len(self.threads) <= self._concurrency:
            return False
        with self.lock:
            is_surplus = len(self.threads) > self._size()
            if is_surplus:
                self.threads.remove(threading.current_thread())
        return is_surplus

    def _size(self) -> int:
        overdue = state_of(self._app).process[os.getpid()].runs.overdue()
        kept = sum(run.thread in self.threads for run in overdue)
        return self._concurrency + min(self._concurrency, kept)
