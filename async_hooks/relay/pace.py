"""The pace of a process: how many deliveries it gets done, and so how many it may hold."""

from __future__ import annotations

import time

#: Seconds that are too few to tell.
_TOO_SHORT = 0.005


class Pace:
    """Counted by every sender, without a lock: of two that count at once, one may be missed."""

    def __init__(self) -> None:
        self.per_second = 0.0
        self._done = 0
        self._since = time.monotonic()

    def count(self) -> None:
        self._done += 1

    def look(self) -> None:
        """Let ``per_second`` be what was done since the last look."""
        now = time.monotonic()
        if now - self._since > _TOO_SHORT:
            self.per_second = self._done / (now - self._since)
            self._done, self._since = 0, now
