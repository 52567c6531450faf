"""For users' tests: what is launched is held back, to be looked at and run when the test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from .envelope import Envelope
from .relay.memory import Immediate
from .state import KEY, State
from .transports.in_process import Eager


class Recorder:
    """Takes the place of what carries launches: ``envelopes`` holds those that have not run yet."""

    def __init__(self, immediate: Immediate) -> None:
        self.envelopes: list[Envelope] = []
        self._immediate = immediate

    def submit(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)

    def run_all(self) -> int:
        """Run what is held, and what that launches; return how many ran.

        Each runs as in production, through JSON and signature in a fresh request. What a task
        or receiver raises is raised here; it and those behind it stay in ``envelopes``.
        """
        count = 0
        while self.envelopes:
            self._immediate.submit(self.envelopes[0])
            del self.envelopes[0]
            count += 1
        return count


@contextmanager
def recording(state: State) -> Iterator[Recorder]:
    """Hold back what the app of ``state`` launches until the block ends."""
    state.prepare()
    recorder = Recorder(Immediate(state.app, Eager(state.app)))
    state.app.extensions[KEY] = replace(
        state, memory=recorder, relay=None, store=None, session=None, is_reachable=lambda: True
    )
    try:
        yield recorder
    finally:
        state.app.extensions[KEY] = state
