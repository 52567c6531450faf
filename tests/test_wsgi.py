from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from werkzeug.test import create_environ

from async_hooks.wsgi import is_served


@pytest.mark.parametrize(
    "environ",
    [
        {"RAW_URI": "/", "SERVER_SOFTWARE": "gunicorn/25"},
        {"RAW_URI": "/", "REQUEST_URI": "/", "SERVER_SOFTWARE": "Werkzeug/3"},
        {"REQUEST_URI": "/", "uwsgi.version": b"2"},
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_PORT": 80},
    ],
    ids=["gunicorn", "werkzeug", "uwsgi", "a server without a name"],
)
def test_whatever_is_no_test_client_is_a_server(environ: dict[str, Any]) -> None:
    assert is_served(environ)


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_test_client_is_no_server(is_kept: bool) -> None:
    app, seen = Flask(__name__), []
    inner = app.wsgi_app

    def observe(environ: Any, start_response: Any) -> Any:
        seen.append(is_served(environ))
        return inner(environ, start_response)

    app.wsgi_app = observe  # type: ignore[method-assign]
    if is_kept:
        with app.test_client() as client:
            client.get("/")
    else:
        app.test_client().open("/", environ_base={"REMOTE_ADDR": "203.0.113.7"})
    assert seen == [False]


def test_other_environs_for_tests_are_of_no_server() -> None:
    assert not is_served(create_environ("/page", method="POST"))
    assert not is_served({"PATH_INFO": "/", "paste.testing": True})  # WebTest's.
