"""Flask-Limiter limits visitors: what they launch runs, however much it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, TransportError
from tests.support.apps import make_task, plain_app
from tests.support.facts import Facts
from tests.support.services import require_module

require_module("flask_limiter")

from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

LIMITS: list[dict[str, Any]] = [
    {"default_limits": ["2 per hour"]},
    {"application_limits": ["2 per hour"]},
    {"default_limits": ["9 per hour"], "meta_limits": ["1 per hour"]},
]


def limited(app: Flask, limits: dict[str, Any]) -> Limiter:
    return Limiter(get_remote_address, app=app, storage_uri="memory://", **limits)


def launch(app: Flask, task: type[AsyncTask], times: int) -> None:
    with app.app_context():
        for _ in range(times):
            task.dispatch({})


@pytest.mark.parametrize("limits", LIMITS, ids=lambda limits: "+".join(limits))
@pytest.mark.parametrize("order", ["limiter first", "limiter last"])
def test_no_run_is_limited(action: str, limits: dict[str, Any], order: str, facts: Facts) -> None:
    app = plain_app(ASYNC_HOOKS_TRANSPORT="in_process")
    if order == "limiter first":
        limited(app, limits)
    task = make_task(AsyncHooks(app), action, run_action=lambda task, data: None)
    if order == "limiter last":
        limited(app, limits)
    launch(app, task, 12)
    facts.wait_for("succeeded", 12)
    assert facts.of("failed") == []


def test_visitors_are_limited_as_ever(action: str) -> None:
    app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
    limited(app, LIMITS[0])
    task = make_task(AsyncHooks(app), action, run_action=lambda task, data: None)
    app.add_url_rule("/", view_func=lambda: task.dispatch({}))
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]


def test_two_limiters_let_runs_pass(action: str, facts: Facts) -> None:
    app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
    limited(app, LIMITS[0])
    limited(app, LIMITS[1])
    task = make_task(AsyncHooks(app), action, run_action=lambda task, data: None)
    launch(app, task, 4)
    assert len(facts.of("succeeded")) == 4


def test_what_else_answers_in_place_of_a_run_is_named(action: str) -> None:
    app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
    limiter = limited(app, {})
    task = make_task(AsyncHooks(app), action, run_action=lambda task, data: None)

    @app.before_request
    def limit_all() -> None:
        with limiter.limit("2 per hour"):
            pass

    launch(app, task, 2)
    with pytest.raises(TransportError) as raised:
        launch(app, task, 1)
    text = str(raised.value)
    assert "answered 429 TOO MANY REQUESTS before the fresh request" in text
    assert re.search(r"flask_limiter\.\w+\.Limiter\._check_request_limit, ", text)
    assert text.endswith("<locals>.limit_all.")
