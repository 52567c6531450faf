"""What the endpoint has consumed, so that a token works once."""

from __future__ import annotations

import threading
import time


class Consumed:
    """Remembers keys for at least ``seconds``, and for less than twice that."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._turned_at = time.monotonic()
        self._recent: set[str] = set()
        self._older: set[str] = set()

    def take(self, key: str) -> bool:
        """Return whether ``key`` is taken for the first time."""
        with self._lock:
            if time.monotonic() - self._turned_at > self._seconds:
                self._turned_at = time.monotonic()
                self._older, self._recent = self._recent, set()
            if key in self._recent or key in self._older:
                return False
            self._recent.add(key)
            return True
