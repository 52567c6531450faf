"""What is known of an attempt that runs, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection as CoreConnection

from ..envelope import Envelope
from . import attempts, checkpoints
from .checkpoints import Shown
from .rows import Row, rows_of
from .sql.database import Database


class RunningAttempts:
    """The attempts of one app. ``audiences`` names it: the first is written, all are read."""

    def __init__(
        self, database: Database, audiences: Sequence[str], now: Callable[[], float]
    ) -> None:
        self.database = database
        self.audiences = audiences
        self.now = now

    def checkpoint(
        self,
        envelope: Envelope,
        cursor: str,
        progress: str | None,
        additions: Sequence[Envelope] = (),
        within: CoreConnection | None = None,
    ) -> bool | None:
        """Keep how far the attempt is, and add ``additions``; return None if it is stale.

        Else tell whether its delivery is paused. ``within`` is as for :meth:`record`.
        """
        now = self.now()
        rows = self._rows(additions, now)
        values = attempts.fence_of(envelope, envelope.attempt)
        values |= {"reached": cursor, "shown": progress, "at": now}
        if within is not None:
            connection = self.database.within(within)
            return checkpoints.write_checkpoint(connection, values, rows)
        return self.database.transaction(
            lambda c: checkpoints.write_checkpoint(c, values, rows), repeatable=True
        )

    def write_progress(self, shown: Iterable[tuple[Envelope, str, float]]) -> bool:
        """Write JSON of the progress of attempts, at times of :meth:`now`.

        Return false, at once, where it can't be written as long as somebody else writes.
        """
        each = [Shown(of.id, str(of.lease), text, at) for of, text, at in shown]
        return checkpoints.write_progress(self.database, each)

    def running(self, envelope: Envelope) -> Any:
        """Return where the attempt, that began, goes on, and since when; None if it is over."""
        fence = attempts.fence_of(envelope, envelope.attempt)
        return self.database.execute(checkpoints.ATTEMPT, fence).one()

    def idle_for(self, envelope: Envelope) -> float | None:
        """Return the seconds since the attempt began or last moved; None if it is over."""
        row = self.running(envelope)
        return None if row is None else self.now() - checkpoints.last_moved(row)

    def counters(self, envelope: Envelope) -> tuple[int, int] | None:
        """Return the failures and crashes before this attempt, that began; None if it is stale."""
        row = self._running(envelope)
        return None if row is None else (row.failures, row.crashes)

    def refusals(self, envelope: Envelope) -> int | None:
        """Return how often in a row the app answered in its place; None if the claim is stale."""
        claim = {"of": envelope.id, "by": envelope.lease}
        row = self.database.execute(attempts.REFUSALS, claim).one()
        return None if row is None else int(row.refusals)

    def holder(self, envelope: Envelope) -> str | None:
        """Return which process runs the attempt, that began; None if it is over."""
        row = self._running(envelope)
        return None if row is None else row.process_id

    def _running(self, envelope: Envelope) -> Any:
        fence = attempts.fence_of(envelope, envelope.attempt)
        return self.database.execute(attempts.RUNNING, fence).one()

    def _rows(self, envelopes: Sequence[Envelope], now: float) -> list[Row]:
        return rows_of(envelopes, audience=self.audiences[0], now=now)
