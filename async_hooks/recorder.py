"""For users' tests: what is launched is held back, to be looked at and run when the test wants."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from flask import Flask

from .envelope import Envelope
from .relay.memory import Immediate
from .state import KEY, State, state_of
from .transports.in_process import Eager

logger = logging.getLogger("async_hooks")


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


class Held(Recorder):
    """Holds the last launches of an app under test that no block or fixture records."""

    def __init__(self, app: Flask, size: int) -> None:
        super().__init__(Immediate(app, Eager(app)))
        self._app = app
        self._size = size
        self._is_said = False

    def submit(self, envelope: Envelope) -> None:
        """Hold ``envelope``, and drop the oldest beyond ``size``; say once why none runs."""
        super().submit(envelope)
        del self.envelopes[: -self._size]
        if not self._is_said:
            self._is_said = True
            what = (
                "%r is TESTING, so its launches are held back. Look at them and run them with "
                "hooks.testing(app), or set 'ASYNC_HOOKS_TESTING' to 'live'."
            )
            logger.info(what, self._app.name)


@contextmanager
def recording(app: Flask) -> Iterator[Recorder]:
    """Hold back what ``app`` launches until the block ends; what was held before stays aside."""
    state_of(app).prepare()
    state: State = app.extensions[KEY]
    recorder = Recorder(Immediate(app, Eager(app)))
    app.extensions[KEY] = replace(_held_by(recorder, state), under_test=None)
    try:
        yield recorder
    finally:
        app.extensions[KEY] = state


def under_test(state: State) -> State | None:
    """Return the record that launches go by under test: none of them reaches the outbox.

    Eager they run, and an object of the user's gets them; else they are held back.
    """
    transport = state.config.transport
    if transport == "eager":
        return None
    if isinstance(transport, str):
        return _held_by(Held(state.app, state.config.queue_size), state)
    return replace(state, relay=None, store=None, session=None)


def _held_by(recorder: Recorder, state: State) -> State:
    return replace(
        state, memory=recorder, relay=None, store=None, session=None, is_reachable=lambda: True
    )
