"""The measured app: one factory, the same two routes whatever system takes the work over."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from flask import Flask, Response

#: The header in which a view says when its hand-over started and ended (nanoseconds).
HAND_OVER_HEADER = "Hand-Over"

Lead = dict[str, Any]
HandOver = Callable[[Lead], object]
Transaction = Callable[[], AbstractContextManager[object]]


def create_app(system: str, **settings: Any) -> Flask:
    """Return an app whose ``/trigger`` hands over by the module ``benchmarks.systems.<system>``.

    If the module has a ``transaction``, both routes do their work, or nothing, within it.
    """
    app = Flask(__name__)
    app.secret_key = "not a secret, but as long as one"
    app.config.update(settings)
    module = import_module(f"benchmarks.systems.{system}")
    hand_over: HandOver = module.connect(app)
    transaction: Transaction = getattr(module, "transaction", nullcontext)

    @app.get("/trigger/<int:first>/<int:count>")
    def trigger(first: int, count: int) -> Response:
        return _timed(hand_over, transaction, first, count)

    @app.get("/noop")
    def noop() -> Response:
        return _timed(hand_over, transaction, 0, 0)

    return app


def _timed(hand_over: HandOver, transaction: Transaction, first: int, count: int) -> Response:
    leads = [_lead(number) for number in range(first, first + count)]
    started = time.monotonic_ns()
    with transaction():
        for lead in leads:
            hand_over(lead)
    ended = time.monotonic_ns()
    return Response("ok", headers={HAND_OVER_HEADER: f"{started} {ended}"})


def _lead(number: int) -> Lead:
    return {"number": number, "name": "Ada Lovelace", "email": "ada@example.org"}
