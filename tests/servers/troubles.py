"""Servers that a doctor should recognise. Each name is an app for gunicorn."""

from __future__ import annotations

import time
from typing import Any

from flask import Flask, redirect

from async_hooks.endpoint import endpoint
from tests.support.shop import create_app

another_app = Flask("another")

to_https = Flask("to_https")
to_login = Flask("to_login")
basic_auth = Flask("basic_auth")
login_api = Flask("login_api")


@to_https.before_request
def secure() -> Any:
    return redirect("https://shop.example/async-hooks/run", 308)


@to_login.before_request
def log_in() -> Any:
    return redirect("/login")


@basic_auth.before_request
def who() -> Any:
    return "", 401, {"WWW-Authenticate": "Basic"}


@login_api.before_request
def say_who() -> Any:
    return {"error": "log in first"}, 401


guarded = create_app()
guarded.before_request(log_in)

broken = create_app()


@broken.before_request
def fail() -> None:
    raise RuntimeError("the database is gone")


def slow_clock() -> Flask:
    """An app whose clock is an hour late: our token comes from its future."""

    class Clock:
        @staticmethod
        def time() -> float:
            return time.time() - 3600

    endpoint.time = Clock  # type: ignore[attr-defined, assignment]
    return create_app()
