"""One clock for all hosts: the database's, where it is a server; SQLite is one machine.

A process compares its own clock, which nobody sets and which may stand for any time, with the
database's, at its first use and then each minute. In between it counts on by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import extract, func, literal_column, select

logger = logging.getLogger("async_hooks")

#: Seconds for which a comparison is believed, and from which on a host's clock is called wrong.
_FRESH, _SKEW = 60.0, 1.0

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
    """The time of a database of ``dialect``, which ``ask`` asks; seconds since the epoch."""

    def __init__(self, dialect: str, ask: Callable[[Any], Any]) -> None:
        self._statement = _NOW.get(dialect)
        self._ask = ask
        self._compared_at = float("-inf")
        #: By how much it is ahead of this process' monotonic clock; None until they are compared.
        self._ahead: float | None = None
        #: By how much this host's clock is ahead of it, where that is worth a word.
        self.skew: float | None = None

    def now(self) -> float:
        """Return the time; where it was never told, this host's."""
        if self._statement is not None and time.monotonic() - self._compared_at > _FRESH:
            self._compared_at = time.monotonic()  # First: while it can't be asked, nobody waits.
            self._compare()
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    def _compare(self) -> None:
        before = time.monotonic()
        try:
            told = float(self._ask(self._statement)[0])
        except Exception:  # It can't be used: who wants more of it will say so.
            return
        after = time.monotonic()
        self._ahead = told - (before + after) / 2
        skew = time.time() - told - (after - before) / 2
        was_right, self.skew = self.skew is None, skew if abs(skew) > _SKEW else None
        if was_right and self.skew is not None:
            logger.warning("This host's clock is %+.1f s off the outbox's database.", skew)
