"""The app of the tests of poisons: what a launch is called says how it goes wrong."""

from __future__ import annotations

import os
import time
from typing import Any

import blinker
from flask import Flask, abort, current_app, g

from async_hooks import AsyncHooks, AsyncTask, Retry, current_envelope
from tests.servers.workshop import note

hooks = AsyncHooks()


class Unspeakable(Exception):
    def __str__(self) -> str:
        return 1 / 0  # type: ignore[return-value]


def restore(kind: str) -> None:
    if kind == "restore":
        raise ValueError("It can't be restored.")


hooks.carry("kind", lambda: getattr(g, "kind", ""), restore)


@hooks.register
class Launch(AsyncTask):
    action = "launched"
    name = "launch"

    def prepare_data(self, sender: Any, /, *, kind: str, number: int) -> dict[str, Any]:
        g.kind = kind
        return {"kind": kind, "number": number}

    def run_action(self, data: dict[str, Any]) -> None:
        if data["kind"] == "text":
            raise Unspeakable
        if data["kind"] in ("spoilt", "orphan"):
            raise Retry("not yet", after=0.2)
        note(ran=data["number"], at=time.time())


def launch(kind: str, number: int) -> str:
    [(_, launched)] = blinker.signal("launched").send(current_app, kind=kind, number=number)
    return str(launched)


def refuse() -> None:
    if current_envelope and current_envelope.data["kind"] == "refused":
        abort(403)


def create_app() -> Flask:
    app = Flask("poisoned_shop", instance_path=os.environ["FOLDER"])
    app.config.update(SECRET_KEY="a key for tests, thirty-two bytes or more")
    app.config.from_prefixed_env("SITE")
    hooks.init_app(app)
    app.before_request(refuse)
    app.add_url_rule("/launch/<kind>/<int:number>", view_func=launch)
    app.add_url_rule("/", "up", lambda: "up")
    return app
