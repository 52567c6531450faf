"""For users' tests: what is launched is held back, to be looked at and run when the test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from .envelope import Envelope
from .relay.relay import Immediate
from .state import KEY, State
from .transports.eager import Eager


class Recorder:
    """Takes the relay's place. ``envelopes`` holds what was launched and not yet run."""

    def __init__(self, relay: Immediate) -> None:
        self.envelopes: list[Envelope] = []
        self._relay = relay

    def put(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)

    def reserve(self, envelope: Envelope, queue: str) -> Envelope | None:
        return None

    def release(self, envelope: Envelope) -> None: ...

    def wake(self) -> None: ...

    def run_all(self) -> int:
        """Run what is held, and what that launches; return how many ran.

        Each runs as in production, through JSON and signature in a fresh request. What a task
        or receiver raises is raised here; it and those behind it stay in ``envelopes``.
        """
        count = 0
        while self.envelopes:
            self._relay.put(self.envelopes[0])
            del self.envelopes[0]
            count += 1
        return count


@contextmanager
def recording(state: State) -> Iterator[Recorder]:
    """Hold back what the app of ``state`` launches until the block ends."""
    recorder = Recorder(Immediate(state.app, Eager(state.app)))
    state.app.extensions[KEY] = replace(
        state, relay=recorder, ledger=None, is_reachable=lambda: True
    )
    try:
        yield recorder
    finally:
        state.app.extensions[KEY] = state
