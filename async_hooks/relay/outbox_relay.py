"""The relay of an outbox."""

from __future__ import annotations

import os
from collections.abc import Collection

from ..envelope import Hold
from ..state import is_under_test
from .claims import Claims
from .pool import Pool
from .relay import Relay


class OutboxRelay(Relay[Claims]):
    """Carries what waits in the outbox."""

    is_durable = True

    def start(self) -> None:
        """Begin to claim and to carry, once in each process; not under test."""
        if is_under_test(self._app):
            return
        self._begin(self._pool[os.getpid()])

    def attend(self) -> None:
        """Show the others that this process lives, which runs what they send it."""
        pool = self._pool[os.getpid()]
        if not (pool.source.process.is_registered.is_set() or self._app.testing):
            with pool.lock:
                pool.source.start(claims=False)

    def wake(self, holds: Collection[Hold] = ()) -> None:
        """Say that something may wait in the outbox, by ``holds`` if they are named."""
        pool = self._pool[os.getpid()]
        if self._config.relay and not self._app.testing:
            self._begin(pool)  # In a test it begins with a server's request only.
        pool.source.wake(holds)

    def _begin(self, pool: Pool[Claims]) -> None:
        if pool.threads or pool.stopping.is_set():
            return
        with pool.lock:
            is_claiming = pool.source.start()
        if is_claiming:
            self._start(pool)
