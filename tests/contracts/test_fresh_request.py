"""A run is the same request, whatever carried its envelope: what a receiver sees of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blinker
import flask
import pytest
import requests
from flask import current_app, request
from flask_login import LoginManager, UserMixin, current_user, login_user
from requests.auth import AuthBase
from werkzeug.serving import make_server

from async_hooks import AsyncHooks
from async_hooks.state import state_of
from async_hooks.worker.worker import Options, Work
from tests.support.apps import make_task, plain_app
from tests.support.facts import Facts
from tests.support.servers import free_port
from tests.support.waiting import wait_until

#: Lets the block's launches run as one way of carrying does, and returns once they have.
Way = Callable[["Shop"], Any]


class Token(AuthBase):
    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        prepared.headers["Authorization"] = b"Token t0ken"  # type: ignore[assignment]
        return prepared


class User(UserMixin):  # type: ignore[misc]
    id = "ada"


class Shop:
    """An app whose page launches, for a visitor who comes from far away."""

    def __init__(self, action: str, **config: Any) -> None:
        headers = {"X-Gate": "open", "X-Forwarded-For": "9.9.9.9", "Cookie": "a=1", "Host": "gate"}
        self.app = plain_app(ASYNC_HOOKS_HEADERS=headers, **config)
        self.hooks = AsyncHooks(self.app)
        LoginManager(self.app).user_loader(lambda user_id: User())
        self.hooks.carry(
            "tenant", lambda: flask.g.tenant, lambda it: setattr(flask.g, "tenant", it)
        )
        self.app.before_request(self._demand)
        self.app.add_url_rule("/", "page", self._page)
        make_task(self.hooks, action)
        self.hooks.receiver(action)(lambda sender: self.seen.append(seen()))
        self.action = action
        self.seen: list[dict[str, Any]] = []

    def _demand(self) -> tuple[str, int] | None:
        return None if request.headers.get("X-Gate") == "open" else ("closed", 403)

    def _page(self) -> str:
        login_user(User())
        flask.g.tenant = "acme"
        blinker.signal(self.action).send(current_app)
        return "ok"

    def visit(self) -> None:
        answer = self.app.test_client().get(
            "/?page=1",
            base_url="https://shop.example:8443/de",
            headers={"X-Gate": "open", "X-Forwarded-Host": "evil.example", "Cookie": "theirs=1"},
            environ_overrides={"REMOTE_ADDR": "203.0.113.7"},
        )
        assert answer.text == "ok"


def seen() -> dict[str, Any]:
    """Return what a receiver sees of its request; of the environ, all that is not the server's."""
    cgi = ("HTTP_", "REMOTE_", "SERVER_", "REQUEST_", "RAW_", "SCRIPT_", "PATH_", "CONTENT_")
    return {
        "user": current_user.get_id(),
        "tenant": flask.g.tenant,
        "session": dict(flask.session),
        "cookies": dict(request.cookies),
        "data": request.get_data(),
        "url": request.url,
        "page": flask.url_for("page", _external=True),
        **{
            key: value
            for key, value in request.environ.items()
            if key.startswith(cgi) and key != "SERVER_SOFTWARE"
        },
    }


EXPECTED = {
    "user": "ada",
    "tenant": "acme",
    "session": {},
    "cookies": {},
    "data": b"",
    "url": "https://shop.example:8443/de/async-hooks/run",
    "page": "https://shop.example:8443/de/",
    "HTTP_HOST": "shop.example:8443",
    "HTTP_X_GATE": "open",
    "REMOTE_ADDR": "127.0.0.1",
    "REQUEST_METHOD": "POST",
    "SERVER_NAME": "shop.example",
    "SERVER_PORT": "8443",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SCRIPT_NAME": "/de",
    "PATH_INFO": "/async-hooks/run",
    "CONTENT_TYPE": "",
    "CONTENT_LENGTH": "0",
}


@contextmanager
def by_loopback(action: str, folder: Path, **config: Any) -> Iterator[Shop]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    shop = Shop(action, ASYNC_HOOKS_URL=url, ASYNC_HOOKS_FALLBACK=None, **config)
    server = make_server("127.0.0.1", port, shop.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield shop
        wait_until(lambda: shop.seen, "the run")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def in_process(action: str, folder: Path, **config: Any) -> Iterator[Shop]:
    shop = Shop(action, ASYNC_HOOKS_TRANSPORT="in_process", **config)
    yield shop
    wait_until(lambda: shop.seen, "the run")


@contextmanager
def in_a_worker(action: str, folder: Path, **config: Any) -> Iterator[Shop]:
    outbox = f"sqlite:///{folder / 'outbox.db'}"
    shop = Shop(action, ASYNC_HOOKS_OUTBOX=outbox, ASYNC_HOOKS_RELAY=False, **config)
    yield shop
    Work(shop.app, Options(name="w1", drain=True)).run()
    state: Any = state_of(shop.app)
    state.store.database.engine.dispose()


@contextmanager
def eagerly(action: str, folder: Path, **config: Any) -> Iterator[Shop]:
    yield Shop(action, ASYNC_HOOKS_TRANSPORT="eager", **config)


@contextmanager
def in_the_testing_fixture(action: str, folder: Path, **config: Any) -> Iterator[Shop]:
    shop = Shop(action, **config)
    with shop.hooks.testing(shop.app) as launched:
        yield shop
        launched.run_all()


@pytest.fixture(params=[by_loopback, in_process, in_a_worker, eagerly, in_the_testing_fixture])
def open_shop(request: pytest.FixtureRequest, action: str, tmp_path: Path) -> Callable[..., Any]:
    return lambda **config: request.param(action, tmp_path, **config)


AUTHS = pytest.mark.parametrize(
    ("auth", "header"),
    [
        (None, {}),
        (("ada", "gehé:im"), {"HTTP_AUTHORIZATION": "Basic YWRhOmdlaMOpOmlt"}),
        (Token(), {"HTTP_AUTHORIZATION": "Token t0ken"}),
    ],
    ids=["no auth", "a pair", "an auth object"],
)


@AUTHS
def test_a_run_is_the_same_request_whatever_carried_it(
    open_shop: Callable[..., Any], auth: Any, header: dict[str, str]
) -> None:
    with open_shop(ASYNC_HOOKS_AUTH=auth) as shop:
        shop.visit()
    assert shop.seen == [{**EXPECTED, **header}]


def test_a_middleware_around_the_app_lets_it_pass_too(open_shop: Callable[..., Any]) -> None:
    with open_shop() as shop:
        inner = shop.app.wsgi_app

        def gate(environ: Any, start_response: Any) -> Any:
            if environ.get("HTTP_X_GATE") == "open":
                return inner(environ, start_response)
            start_response("403 FORBIDDEN", [])
            return [b"closed"]

        shop.app.wsgi_app = gate
        shop.visit()
    assert shop.seen == [EXPECTED]


def test_an_auth_object_that_raises_fails_the_attempt(action: str, facts: Facts) -> None:
    def ask(prepared: Any) -> Any:
        raise LookupError("the token service is down")

    shop = Shop(action, ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_AUTH=ask)
    shop.visit()
    [said] = facts.wait_for("failed")
    assert str(said["exception"]) == "The auth object of 'ASYNC_HOOKS_AUTH' raised LookupError."
