"""One clock for all hosts: the database's, where it is a server; SQLite is one machine.

A process compares the seconds that it counts, which nobody sets, with the database's clock: at its
first use, and then with its heartbeats. In between it counts on by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import extract, func, literal_column, select

logger = logging.getLogger("async_hooks")

#: Seconds between two comparisons, and until the next try after one that failed.
_EVERY, _AGAIN = 60.0, 1.0

#: Seconds that a comparison may take to be exact enough.
_QUICK = 0.05

#: Seconds from which on a host's clock is called wrong.
_SKEW = 1.0

#: Asks the database; returns the one row that a statement finds.
Ask = Callable[[Any], Any]

_NOW: dict[str, Any] = {
    "postgresql": select(extract("epoch", func.clock_timestamp()).label("at")),
    **dict.fromkeys(
        ("mysql", "mariadb"),
        select(
            func.timestampdiff(
                literal_column("MICROSECOND"),
                literal_column("'1970-01-01'"),
                func.utc_timestamp(literal_column("6")),
            ).label("at")
            / literal_column("1e6")
        ),
    ),
}


class Clock:
    """The time of a database of ``dialect``, in seconds since the epoch.

    ``ask`` asks it on a connection of our own; None where there is none to spare.
    """

    def __init__(self, dialect: str, ask: Ask | None) -> None:
        self._statement = _NOW.get(dialect)
        self._ask = ask
        self._lock = threading.Lock()
        self._compare_at = float("-inf")
        #: By how much it is ahead of what this process counts; None until they are compared.
        self._ahead: float | None = None
        #: By how much this host's clock is ahead of it, where that is worth a word.
        self.skew: float | None = None

    def now(self) -> float:
        """Return the time; where it was never told, this host's."""
        if self._ahead is None and self._ask is not None:
            self.compare(self._ask)
        return time.time() if self._ahead is None else _counted() + self._ahead

    def compare(self, ask: Ask) -> None:
        """Compare the clocks by ``ask``, unless that was done lately; others wait meanwhile."""
        with self._lock:
            if self._statement is None or _counted() < self._compare_at:
                return
            self._compare_at = _counted() + _AGAIN
            try:
                took, told = min(self._told(ask) for _ in range(2))
            except Exception:  # It can't be used: who wants more of it will say so.
                return
            self._ahead = told
            skew = time.time() - (_counted() + told)
            was_right, self.skew = self.skew is None, skew if abs(skew) > _SKEW else None
            if was_right and self.skew is not None:
                logger.warning("This host's clock is %+.1f s off the outbox's database.", skew)
            self._compare_at = _counted() + (_EVERY if took < _QUICK else _AGAIN)

    def _told(self, ask: Ask) -> tuple[float, float]:
        """Return how long asking took, and by how much the database is ahead of our counting."""
        before = _counted()
        told = float(ask(self._statement)[0])
        after = _counted()
        return after - before, told - (before + after) / 2


def _counted() -> float:
    """Return seconds that nobody sets; where that can be had, also those of a machine asleep."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
