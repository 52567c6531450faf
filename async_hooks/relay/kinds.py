"""What this process can run, and a warning of what it can't: others may never come."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flask import Flask

from ..receivers import explain_unknown, kinds_of
from ..state import state_of

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.store import Store

#: Seconds between two looks for what is unknown.
_EVERY = 5.0

logger = logging.getLogger("async_hooks")


class Kinds:
    """The (task, receiver) that ``app`` knows."""

    def __init__(self, app: Flask, store: Store) -> None:
        self._app = app
        self._store = store
        self._look_at = float("-inf")
        self._reported: set[tuple[str, str]] = set()

    def known(self, now: float) -> set[tuple[str, str]]:
        """Return them; warn, once for each, of those that are due and are not among them.

        :raises ConfigError: if what ``ASYNC_HOOKS_IMPORTS`` names can't be imported.
        """
        state = state_of(self._app)
        state.prepare()
        known = kinds_of(state)
        if now >= self._look_at:
            for kind in sorted(self._store.due_kinds() - known - self._reported):
                self._reported.add(kind)
                logger.warning("%s", explain_unknown(state, *kind, "so its deliveries wait"))
            self._look_at = now + _EVERY
        return known
