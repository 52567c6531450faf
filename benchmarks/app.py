"""The measured app: the same two routes, whatever system takes the work over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

from blinker import signal
from flask import Flask, Response

from .deployment import current, run
from .systems import SYSTEMS

#: The header in which a view says when its hand-over started and ended (nanoseconds).
HAND_OVER_HEADER = "Hand-Over"

#: The name of the task of async_hooks.
TASK = "benchmarks.lead"

Lead = dict[str, Any]
HandOver = Callable[[Lead], object]
Transaction = Callable[[], AbstractContextManager[object]]

_lead_submitted = signal("lead_submitted")


def work(lead: Lead) -> None:
    """Do what is deferred, by whatever system: the least that a task can do."""
    run(lead["number"])


def create_app() -> Flask:
    """Return the app of the deployment's system.

    Where launches join the app's own transactions, both routes write a row and commit.
    """
    app = Flask(__name__)
    app.secret_key = "not a secret, but as long as one"
    system = SYSTEMS[current().system]
    app.config.update(system.settings)
    db, transaction = _database(app) if system.is_joined else (None, nullcontext)
    hand_over = _launcher(app, db) if system.is_ours else _peer(app)

    def timed(first: int, count: int) -> Response:
        leads = [_lead(number) for number in range(first, first + count)]
        started = time.monotonic_ns()
        with transaction():
            for lead in leads:
                hand_over(lead)
        ended = time.monotonic_ns()
        return Response("ok", headers={HAND_OVER_HEADER: f"{started} {ended}"})

    @app.get("/trigger/<int:first>/<int:count>")
    def trigger(first: int, count: int) -> Response:
        return timed(first, count)

    @app.get("/noop")
    def noop() -> Response:
        return timed(0, 0)

    return app


def _lead(number: int) -> Lead:
    return {"number": number, "name": "Ada Lovelace", "email": "ada@example.org"}


def _peer(app: Flask) -> HandOver:
    hand_over: HandOver = import_module("benchmarks.peers").connect(app)
    return hand_over


def _launcher(app: Flask, db: Any) -> HandOver:
    """Return what sends a signal whose receiver runs in a fresh request."""
    # Imported here, because the memory of a peer's web process is measured too.
    from async_hooks import AsyncHooks, AsyncTask

    class LeadTask(AsyncTask):
        action = _lead_submitted
        name = TASK

        def prepare_data(self, sender: Flask, *, lead: Lead) -> Lead:
            return lead

    if url := current().database_url:
        app.config.setdefault("ASYNC_HOOKS_OUTBOX", url)
    # An audience of its own: nobody else's relays are to be woken.
    app.config["ASYNC_HOOKS_AUDIENCE"] = current().name
    hooks = AsyncHooks(app, db=db)
    hooks.register(LeadTask)

    @hooks.receiver("lead_submitted", name="work")
    def receive(sender: Flask, **lead: Any) -> None:
        work(lead)

    return lambda lead: _lead_submitted.send(app, lead=lead)


def _database(app: Flask) -> tuple[Any, Transaction]:
    """Return the app's own database, and a transaction that writes a row and commits."""
    # Optional, and imported by these systems only.
    db: Any = import_module("flask_sqlalchemy").SQLAlchemy()

    class Visit(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)

    # psycopg is what the extra brings; older SQLAlchemys would look for another driver.
    url = current().database_url.replace("postgresql:", "postgresql+psycopg:")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    with app.app_context():
        db.create_all()

    @contextmanager
    def transaction() -> Iterator[None]:
        db.session.add(Visit())
        yield
        db.session.commit()

    return db, transaction
