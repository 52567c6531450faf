"""Eager, for tests: at once, through JSON and signature, and what a receiver raises is raised."""

from __future__ import annotations

import time

from flask import Flask

from ..envelope import Envelope
from ..state import state_of
from ..verdict import Verdict
from .in_process import InProcess, verdict_of


class Eager:
    """Runs an envelope in the calling thread, as a token that was signed and verified."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def send(self, envelope: Envelope) -> Verdict:
        """Return the verdict; raise what ``run_action`` or a receiver raised."""
        state = state_of(self._app)
        now = time.time()
        token = state.signing.sign(envelope, now=now)
        arrived, _ = state.signing.verify(token, now=now, max_age=state.config.max_age)
        run = InProcess(self._app).run(arrived)
        if run.exception is not None:
            raise run.exception
        return verdict_of(run)
