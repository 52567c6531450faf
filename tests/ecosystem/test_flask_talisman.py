"""Flask-Talisman sends plain HTTP away: a run comes in by https, as every visitor does."""

from __future__ import annotations

import threading
from typing import Any

import flask
import pytest
from werkzeug.serving import make_server

from async_hooks import AsyncHooks, TransportError
from tests.support.apps import make_task, plain_app
from tests.support.facts import Facts
from tests.support.servers import free_port
from tests.support.services import require_module

require_module("flask_talisman")

from flask_talisman import Talisman


class Shop:
    def __init__(self, action: str, talisman: dict[str, Any] | None = None, **config: Any) -> None:
        self.app = plain_app(**{"ASYNC_HOOKS_TRANSPORT": "eager", **config})
        hooks = AsyncHooks(self.app)
        Talisman(self.app, **(talisman or {}))
        task = self.task = make_task(hooks, action)
        self.app.add_url_rule("/", "page", lambda: task.dispatch({}))
        self.urls: list[str] = []
        hooks.receiver(action)(
            lambda sender: self.urls.append(flask.url_for("page", _external=True))
        )

    def remind(self) -> None:
        """Launch from a `flask` command."""
        command = self.app.cli.command("remind")(lambda: self.task.dispatch({}) and None)
        result = self.app.test_cli_runner().invoke(command, catch_exceptions=False)
        assert result.exit_code == 0


def test_a_command_launches_by_https(action: str) -> None:
    shop = Shop(action, SERVER_NAME="shop.example")
    shop.remind()
    assert shop.urls == ["https://shop.example/"]


@pytest.mark.parametrize("lax", ["debug", "told so"])
def test_where_plain_http_is_let_in_a_launch_outside_a_request_is_by_it(
    action: str, lax: str
) -> None:
    shop = Shop(action, {"force_https": False} if lax == "told so" else {})
    shop.app.debug = lax == "debug"
    with shop.app.app_context():
        shop.task.dispatch({})
    assert shop.urls == ["http://localhost/"]


def test_a_command_launches_by_loopback_too(action: str, facts: Facts) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config: dict[str, Any] = {"ASYNC_HOOKS_TRANSPORT": "loopback", "ASYNC_HOOKS_FALLBACK": None}
    shop = Shop(action, ASYNC_HOOKS_URL=url, **config)
    server = make_server("127.0.0.1", port, shop.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        shop.remind()
        facts.wait_for("succeeded")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert shop.urls == ["https://localhost/"]


def test_a_visitor_whom_a_proxys_header_lets_pass_launches(action: str) -> None:
    shop = Shop(action)
    answer = shop.app.test_client().get("/", headers={"X-Forwarded-Proto": "https"})
    assert answer.status_code == 200
    assert shop.urls == ["http://localhost/"]  # As in the page: no ProxyFix is set up.


def test_two_apps_keep_their_own_options(action: str) -> None:
    strict, lax = Shop(action), Shop(f"{action}_lax", {"force_https": False})
    for shop in (strict, lax, strict):
        shop.remind()
    assert [*strict.urls, *lax.urls] == ["https://localhost/"] * 2 + ["http://localhost/"]


def test_a_redirect_to_https_names_the_key(action: str) -> None:
    app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
    task = make_task(AsyncHooks(app), action)

    @app.before_request
    def force_https() -> Any:
        if not flask.request.is_secure:
            return flask.redirect(flask.request.url.replace("http:", "https:"))
        return None

    with (
        app.app_context(),
        pytest.raises(TransportError, match="Set 'PREFERRED_URL_SCHEME' to 'https'"),
    ):
        task.dispatch({})
    app.config["PREFERRED_URL_SCHEME"] = "https"
    with app.app_context():
        task.dispatch({})
