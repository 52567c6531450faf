"""The open requests of one process that put something off, so that none holds it back for long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from flask import Flask

#: Seconds between two looks; what must not wait is done at the second that sees it.
LOOK = 0.5

logger = logging.getLogger("async_hooks")


class Waiting(Protocol):
    """What one request puts off; true while that is anything."""

    def __bool__(self) -> bool: ...

    def look(self) -> None:
        """Do it, if it has waited for long enough."""
        ...

    def close(self) -> None:
        """Do it, and what comes later at once."""
        ...


class OpenRequests:
    """Looks at what is put off, as long as there is any, in a thread that the first one starts.

    Nothing else is asked of a request: what has nothing left is forgotten at the next look.
    """

    def __init__(self) -> None:
        self._waiting: dict[Waiting, Flask] = {}
        self._is_any = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, app: Flask, waiting: Waiting) -> None:
        """Look at ``waiting``, of a request of ``app``, until it has nothing left."""
        self._waiting[waiting] = app
        if not self._is_any.is_set():
            self._is_any.set()
            if self._thread is None:
                self._start()

    def close(self, app: Flask) -> None:
        """Let what the requests of ``app`` put off wait no longer."""
        for waiting, whose in list(self._waiting.items()):
            if whose is app:
                _guarded(waiting.close)

    def look(self) -> None:
        """Look at each once."""
        for waiting, app in list(self._waiting.items()):
            _guarded(waiting.look)
            if not waiting:
                self._waiting.pop(waiting, None)
                if waiting:  # Its request has put something off meanwhile.
                    self._waiting[waiting] = app

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._keep_looking, name="async_hooks-open-requests", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # There is a limit on threads: each waits for its response.
                    self._waiting.clear()
                    self._is_any.clear()
                else:
                    self._thread = thread

    def _keep_looking(self) -> None:
        while True:
            self._is_any.wait()
            time.sleep(LOOK)
            self._is_any.clear()  # Who adds from here on sets it again.
            self.look()
            if self._waiting:
                self._is_any.set()


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        logger.exception("What a request put off until after its response failed.")
