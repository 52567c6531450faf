"""The app that the server tests start: it launches, and notes in a ledger what runs where.

``LEDGER`` names a file; each line is JSON. A receiver waits while the file ``HOLD`` exists, and
events are streamed while a file ``stream`` lies beside the ledger.
A visit launches one task, an order three, a split one with three receivers.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blinker
import flask
from flask import Flask, Response, current_app, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from async_hooks import AsyncHooks, AsyncTask, current_envelope
from async_hooks.signals import task_failed

LEDGER = Path(os.environ["LEDGER"])
HOLD = Path(os.environ.get("HOLD", "/nonexistent"))

hooks = AsyncHooks()


def note(**facts: Any) -> None:
    """Append ``facts`` to the ledger, whole and on disk, whatever happens next."""
    descriptor = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, json.dumps({**facts, "pid": os.getpid()}).encode() + b"\n")
    os.fsync(descriptor)
    os.close(descriptor)


@hooks.register
class Visit(AsyncTask):
    action = "visited"

    def prepare_data(self, sender: Any, /, *, number: int) -> dict[str, Any]:
        return {"number": number, "launched_in": os.getpid()}


@hooks.register
class Split(Visit):
    action = "split"


@hooks.receiver("visited", name="only")
def only(sender: Flask, *, number: int, launched_in: int) -> None:
    note(
        number=number,
        launched_in=launched_in,
        id=current_envelope.id,
        method=request.method,
        path=request.path,
        url=flask.url_for("visit", number=number, _external=True),
    )
    while HOLD.exists():
        time.sleep(0.01)
    note(done=number, id=current_envelope.id)


def part(name: str) -> None:
    @hooks.receiver("split", name=name)
    def receive(sender: Flask, *, number: int, launched_in: int) -> None:
        note(number=number, receiver=name, id=current_envelope.id)


for name in ("one", "two", "three"):
    part(name)


class Order(AsyncTask):
    action = "ordered"

    def prepare_data(self, sender: Any, /, *, number: int) -> dict[str, Any]:
        return {"number": number}


for name in ("pack", "bill", "thank"):
    hooks.register(type(name.title(), (Order,), {"name": name, "__module__": __name__}))


@hooks.receiver("ordered", name="clerk")
def clerk(sender: Flask, *, number: int) -> None:
    facts = {"order": number, "task": current_envelope.task, "id": current_envelope.id}
    # A run in process is in one of the library's own threads.
    served = not threading.current_thread().name.startswith("async_hooks-")
    url = flask.url_for("order", number=number, _external=True)
    note(**facts, method=request.method, path=request.path, served=served, url=url)
    while HOLD.exists():
        time.sleep(0.01)
    note(filled=number, id=current_envelope.id)


class ApiError(Exception):
    """Has a number for a text, as a careless ``__str__`` returns it."""

    def __str__(self) -> Any:
        return 503


@hooks.job(name="api")
def call_api(number: int) -> None:
    note(called=number, id=current_envelope.id)
    raise ApiError


@task_failed.connect
def failed(sender: Flask, *, envelope: Any, exception: BaseException) -> None:
    note(failed=envelope.id, error="" if isinstance(exception, ApiError) else str(exception))


def visit(number: int) -> str:
    blinker.signal("visited").send(current_app, number=number)
    return f"{os.getpid()}"


def split(number: int) -> str:
    blinker.signal("split").send(current_app, number=number)
    return f"{os.getpid()}"


def order(number: int) -> list[Any]:
    """Answer with the ids of what was launched."""
    return [launched for _, launched in blinker.signal("ordered").send(current_app, number=number)]


def stream(number: int) -> Response:
    launched = order(number)
    return Response(f"{part}\n" for part in launched)


def events(number: int) -> Response:
    visit(number)

    def stream() -> Iterator[str]:
        yield "data: first\n\n"
        while (LEDGER.parent / "stream").exists():  # No next one comes.
            time.sleep(0.01)

    return Response(stream(), mimetype="text/event-stream")


def create_app(**config: Any) -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a key for tests, thirty-two bytes or more", **config)
    app.config.from_prefixed_env("SITE")
    app.add_url_rule("/visit/<int:number>", view_func=visit)
    app.add_url_rule("/split/<int:number>", view_func=split)
    app.add_url_rule("/order/<int:number>", view_func=order)
    app.add_url_rule("/api/<int:number>", "api", call_api.enqueue)
    app.add_url_rule("/stream/<int:number>", view_func=stream)
    app.add_url_rule("/events/<int:number>", view_func=events)
    app.add_url_rule("/", "up", lambda: "up")
    hooks.init_app(app)
    return app


app = create_app()

proxied = create_app()
proxied.wsgi_app = ProxyFix(proxied.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)  # type: ignore[method-assign]

mounted = DispatcherMiddleware(Flask("front"), {"/shop": create_app()})
