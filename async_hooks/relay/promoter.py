"""The promoter: after the launches and ends of one process, it has promoted what may run."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from ..envelope import Hold

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.keys.promotion import Promotion

#: Seconds between two sweeps, the part of the time that they take at most, and between two where
#: no task that this code knows has limits.
_EVERY, _SHARE, _IDLE = 0.2, 0.05, 5.0

#: Seconds after which a key that nobody uses is forgotten, and between two looks for such keys.
_FORGOTTEN, _PURGE_EVERY = 3600.0, 60.0


class Promoter:
    """Any thread may call :meth:`touch`; the one that claims does all else.

    What is touched and lost, as its process dies, is found by the sweeps of the others.
    """

    def __init__(self, promotion: Promotion) -> None:
        self._promotion = promotion
        self._touched: dict[Hold, None] = {}
        # Another start in each process: they share the work where it is much.
        self._after = secrets.token_hex(32)
        self._sweep_at = self._purge_at = float("-inf")
        #: When the first that waits is due, by the outbox's clock, as far as is known.
        self._due_at = float("inf")

    def touch(self, holds: Iterable[Hold]) -> None:
        """Note that something may wait by ``holds``, or may run now."""
        self._touched.update(dict.fromkeys(holds))

    def run(self, kinds: Collection[tuple[str, str]], *, has_limits: bool) -> None:
        """Promote what was touched, of the ``kinds`` that are known, and at times all the rest."""
        known = frozenset(kinds)
        while self._touched:
            self._promotion.promote(self._touched.popitem()[0], known)
        now = time.monotonic()
        if now >= self._sweep_at:
            self._after, self._due_at = self._promotion.sweep(self._after, known)
            took = time.monotonic() - now
            self._sweep_at = now + (max(_EVERY, took / _SHARE) if has_limits else _IDLE)
        if now >= self._purge_at:
            self._promotion.purge(_FORGOTTEN)
            self._purge_at = now + _PURGE_EVERY

    def due_in(self, now: float) -> float:
        """Return the seconds until what waits may be due, ``now`` by the outbox's clock."""
        return max(_EVERY, self._due_at - now)
