"""What the endpoint has consumed, so that a token works once."""

from __future__ import annotations

import threading
import time

from .envelope import Envelope
from .errors import TokenReplayed


class Consumed:
    """Remembers attempts for at least ``seconds``, and for less than twice that."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._turned_at = time.monotonic()
        self._recent: set[str] = set()
        self._older: set[str] = set()

    def take(self, envelope: Envelope) -> None:
        """Consume this attempt at ``envelope``.

        :raises TokenReplayed: if it was consumed before.
        """
        key = f"{envelope.id}/{envelope.attempt}"
        with self._lock:
            if time.monotonic() - self._turned_at > self._seconds:
                self._turned_at = time.monotonic()
                self._older, self._recent = self._recent, set()
            if key in self._recent or key in self._older:
                raise TokenReplayed(
                    f"Attempt {envelope.attempt} at envelope {envelope.id!r} came a second time. "
                    "Does a proxy repeat POSTs?"
                )
            self._recent.add(key)
