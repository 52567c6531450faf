"""The shop of the server tests, all of it behind Flask-BasicAuth."""

from __future__ import annotations

from flask_basicauth import BasicAuth

from tests.support.shop import create_app

PAIR = ("ada", "secret")

app = create_app(
    BASIC_AUTH_FORCE=True,
    BASIC_AUTH_USERNAME=PAIR[0],
    BASIC_AUTH_PASSWORD=PAIR[1],
    ASYNC_HOOKS_AUTH=PAIR,
)
BasicAuth(app)
