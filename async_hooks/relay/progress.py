"""Writes, at most once a second, what runs have shown of their progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .process import Process

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.store import Store

#: Seconds between two writes.
_EVERY = 1.0


class ProgressWriter:
    """Writes the progress of the runs of ``process``, in the one thread that calls it."""

    def __init__(self, process: Process, store: Store) -> None:
        self._process = process
        self._store = store
        self._write_at = float("-inf")

    def write(self, pause: float) -> float:
        """Write what there is, if it is time; return ``pause`` seconds, or fewer until it is."""
        runs, now = self._process.runs, self._process.monotonic()
        if runs.has_shown and now >= self._write_at:
            self._write_at = now + _EVERY
            runs.has_shown = False  # First: what is shown from here on is written next time.
            shown = runs.shown()
            if self._store.write_progress([(run.envelope, *said) for run, said in shown]):
                for run, said in shown:
                    run.note_written(said)
            else:
                runs.has_shown = True
        return min(pause, max(0.0, self._write_at - now)) if runs.has_shown else pause
