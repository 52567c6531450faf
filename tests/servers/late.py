"""An app whose view imports the module of its task: a restarted process does not know that."""

from __future__ import annotations

import os

from flask import Flask

from async_hooks import AsyncHooks

hooks = AsyncHooks()


def order(number: int) -> str:
    from tests.servers import late_tasks

    return late_tasks.Order.dispatch({"number": number})


def create_app() -> Flask:
    app = Flask(__name__, instance_path=os.environ["FOLDER"])
    app.config["SECRET_KEY"] = "a key for tests, thirty-two bytes or more"
    app.config["ASYNC_HOOKS_OUTBOX"] = "sqlite:///outbox.db"
    app.config.from_prefixed_env("SITE")
    app.add_url_rule("/order/<int:number>", view_func=order)
    app.add_url_rule("/", "up", lambda: "up")
    hooks.init_app(app)
    # What is imported at the start may need what comes after init_app.
    app.extensions["ledger"] = os.environ["LEDGER"]
    return app
