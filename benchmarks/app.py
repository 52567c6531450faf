"""The measured app: one factory, the same two routes whatever system takes the work over."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from flask import Flask, Response

#: The header in which a view says when its hand-over started and ended (nanoseconds).
HAND_OVER_HEADER = "Hand-Over"

Lead = dict[str, Any]
HandOver = Callable[[Lead], object]


def create_app(system: str) -> Flask:
    """Return an app whose ``/trigger`` hands over by the module ``benchmarks.systems.<system>``."""
    app = Flask(__name__)
    app.secret_key = "not a secret, but as long as one"
    hand_over: HandOver = import_module(f"benchmarks.systems.{system}").connect(app)

    @app.get("/trigger/<int:first>/<int:count>")
    def trigger(first: int, count: int) -> Response:
        return _timed(hand_over, first, count)

    @app.get("/noop/<int:first>/<int:count>")
    def noop(first: int, count: int) -> Response:
        return _timed(_nothing, first, count)

    return app


def _timed(hand_over: HandOver, first: int, count: int) -> Response:
    leads = [_lead(number) for number in range(first, first + count)]
    started = time.monotonic_ns()
    for lead in leads:
        hand_over(lead)
    ended = time.monotonic_ns()
    return Response("ok", headers={HAND_OVER_HEADER: f"{started} {ended}"})


def _lead(number: int) -> Lead:
    return {"number": number, "name": "Ada Lovelace", "email": "ada@example.org"}


def _nothing(lead: Lead) -> None:
    """Take a lead over and forget it."""
