from __future__ import annotations

from typing import Any
from uuid import UUID

import blinker
import flask
import pytest
from flask import Flask
from flask_login import LoginManager, UserMixin, current_user, login_user, user_logged_in

from async_hooks import AsyncHooks, AsyncHooksError, Auth, ConfigError
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts


class User(UserMixin):  # type: ignore[misc]
    def __init__(self, user_id: str) -> None:
        self.id = user_id


def with_flask_login(users: set[str], **config: Any) -> tuple[Flask, AsyncHooks]:
    """Return an app that knows ``users`` and logs in whom ``/<name>`` names."""
    app, hooks = make_app(**config)
    manager = LoginManager(app)
    manager.user_loader(lambda user_id: User(user_id) if user_id in users else None)
    return app, hooks


def with_own_identity() -> tuple[Flask, AsyncHooks, dict[str, bool]]:
    """Return an app that keeps who visits in ``g``, and the accounts that exist."""
    app, hooks = make_app()
    accounts = {"ada": True}

    def restore(user: str) -> None:
        flask.g.user = user if accounts.get(user) else None

    hooks.identity(lambda: flask.g.get("user"), restore)
    return app, hooks, accounts


def visit(app: Flask, action: str, user: str | None) -> None:
    """Send ``action`` in a request of ``user``'s."""
    with app.test_request_context():
        if user is not None and hasattr(app, "login_manager"):
            login_user(User(user))
        elif user is not None:
            flask.g.user = user
        blinker.signal(action).send(app)


class TestFlaskLogin:
    def test_the_run_is_the_visitors_before_any_before_request(self, action: str) -> None:
        app, hooks = with_flask_login({"ada"})
        make_task(hooks, action)
        seen: list[Any] = []
        app.before_request(lambda: seen.append(current_user.get_id()))
        hooks.receiver(action)(lambda sender: seen.append(current_user.get_id()))
        visit(app, action, "ada")
        assert seen == ["ada", "ada"]

    def test_restoring_is_no_login(self, action: str) -> None:
        app, hooks = with_flask_login({"ada"})
        make_task(hooks, action)
        logins: list[Any] = []
        sessions: list[dict[str, Any]] = []
        hooks.receiver(action)(lambda sender: sessions.append(dict(flask.session)))
        with user_logged_in.connected_to(lambda *a, **k: logins.append(1), app):
            visit(app, action, "ada")
        assert (len(logins), sessions) == (1, [{}])

    def test_an_anonymous_visitor_stays_anonymous(self, action: str) -> None:
        app, hooks = with_flask_login({"ada"})
        make_task(hooks, action)
        seen: list[Any] = []
        hooks.receiver(action)(lambda sender: seen.append(current_user.is_authenticated))
        visit(app, action, None)
        assert seen == [False]

    def test_outside_a_request_nobody_visits(self, action: str) -> None:
        app, hooks = with_flask_login({"ada"})
        make_task(hooks, action)
        make_task(hooks, action, name="members", auth_level=Auth.LOGGED_IN)
        seen: list[Any] = []
        hooks.receiver(action)(lambda sender: seen.append(current_user.is_authenticated))
        with app.app_context():
            blinker.signal(action).send(app)
        assert seen == [False]

    def test_dispatch_can_name_a_visitor(self, action: str) -> None:
        app, hooks = with_flask_login({"ada"})
        task = make_task(hooks, action, auth_level=Auth.LOGGED_IN)
        seen: list[Any] = []
        hooks.receiver(action)(lambda sender: seen.append(current_user.get_id()))
        with app.app_context():
            task.dispatch({}, user="ada")
        assert seen == ["ada"]

    def test_a_deleted_visitor_is_anonymous(self, action: str) -> None:
        users = {"ada"}
        app, hooks = with_flask_login(users)
        make_task(hooks, action)
        seen: list[Any] = []
        hooks.receiver(action)(lambda sender: seen.append(current_user.is_authenticated))
        with hooks.testing(app) as launched:
            visit(app, action, "ada")
            users.clear()
            launched.run_all()
        assert seen == [False]

    def test_a_logged_in_task_of_a_deleted_visitor_is_discarded(
        self, action: str, facts: Facts
    ) -> None:
        users = {"ada"}
        app, hooks = with_flask_login(users, ASYNC_HOOKS_TRANSPORT="in_process")
        task = make_task(hooks, action, auth_level=Auth.LOGGED_IN)
        users.clear()
        with app.app_context():
            task.dispatch({}, user="ada")
        [said] = facts.wait_for("discarded")
        assert said["error"] == "The visitor it was launched for is gone."
        assert facts.of("started") == []


class TestOwnIdentity:
    def test_the_visitor_travels(self, action: str) -> None:
        app, hooks, _ = with_own_identity()
        make_task(hooks, action)
        seen: list[Any] = []
        app.before_request(lambda: seen.append(flask.g.get("user")))
        hooks.receiver(action)(lambda sender: seen.append(flask.g.user))
        visit(app, action, "ada")
        assert seen == ["ada", "ada"]

    def test_restore_may_return_nothing(self, action: str) -> None:
        app, hooks, _ = with_own_identity()
        make_task(hooks, action, auth_level=Auth.LOGGED_IN)
        ran: list[int] = []
        hooks.receiver(action)(lambda sender: ran.append(1))
        visit(app, action, "ada")
        assert ran == [1]

    def test_an_id_that_is_no_json_travels_as_data_would(self, action: str) -> None:
        app, hooks = make_app()
        seen: list[Any] = []
        hooks.identity(lambda: flask.g.get("user"), lambda user: setattr(flask.g, "user", user))
        make_task(hooks, action)
        hooks.receiver(action)(lambda sender: seen.append(flask.g.user))
        with app.test_request_context():
            flask.g.user = UUID(int=7)
            blinker.signal(action).send(app)
        assert seen == [str(UUID(int=7))]


@pytest.mark.parametrize(
    ("level", "user", "launches"),
    [
        (Auth.LOGGED_IN, "ada", True),
        (Auth.LOGGED_IN, None, False),
        (Auth.LOGGED_OUT, "ada", False),
        (Auth.LOGGED_OUT, None, True),
        (Auth.BOTH, "ada", True),
        (Auth.BOTH, None, True),
    ],
)
def test_auth_level_says_for_whom_a_task_launches(
    action: str, facts: Facts, level: Auth, user: str | None, launches: bool
) -> None:
    app, hooks, _ = with_own_identity()
    make_task(hooks, action, auth_level=level, run_action=lambda self, data: None)
    visit(app, action, user)
    assert len(facts.of("succeeded")) == int(launches)


def test_dispatch_for_the_wrong_visitor_is_an_error(action: str) -> None:
    app, hooks, _ = with_own_identity()
    task = make_task(hooks, action, auth_level=Auth.LOGGED_IN)
    with app.app_context(), pytest.raises(AsyncHooksError, match="user=id"):
        task.dispatch({})


def test_logged_in_without_an_identity_is_an_error(action: str) -> None:
    app, hooks = make_app(TESTING=True)
    make_task(hooks, action, auth_level=Auth.LOGGED_IN)
    with app.app_context(), pytest.raises(ConfigError, match="Set up Flask-Login, or call hooks"):
        blinker.signal(action).send(app)


def test_an_anonymous_visitor_fires_nopriv_as_well(action: str) -> None:
    app, hooks, _ = with_own_identity()
    make_task(hooks, action)
    seen: list[str] = []

    def both(sender: Flask) -> None:
        seen.append("both")

    def nopriv(sender: Flask) -> None:
        seen.append("nopriv")

    blinker.signal(f"wp_async_{action}").connect(both)
    blinker.signal(f"wp_async_nopriv_{action}").connect(nopriv)
    visit(app, action, "ada")
    assert seen == ["both"]
    visit(app, action, None)
    assert seen == ["both", "both", "nopriv"]


def test_other_context_travels(action: str) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    seen: list[Any] = []
    hooks.carry("locale", lambda: flask.g.locale, lambda locale: setattr(flask.g, "locale", locale))
    app.before_request(lambda: seen.append(flask.g.locale))
    with app.test_request_context():
        flask.g.locale = "de"
        blinker.signal(action).send(app)
    assert seen == ["de"]


def test_a_capture_that_raises_carries_nothing_and_loses_no_launch(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    seen: list[Any] = []
    hooks.carry("tenant", lambda: flask.g.tenant, lambda it: setattr(flask.g, "tenant", it))
    hooks.carry("theme", lambda: "dark", lambda it: setattr(flask.g, "theme", it))
    hooks.receiver(action)(lambda sender: seen.append(vars(flask.g)))
    with app.app_context():
        blinker.signal(action).send(app)
        blinker.signal(action).send(app)
    assert seen == [{"theme": "dark"}] * 2
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("WARNING", "The capture of 'tenant' failed; it is not carried. This is said once.")
    ]


def test_an_identity_that_can_not_be_told_is_anonymous_and_loses_no_launch(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    seen: list[Any] = []
    hooks.identity(lambda: flask.g.user, lambda user: setattr(flask.g, "user", user))
    app.before_request(lambda: flask.g.setdefault("user", None))
    hooks.receiver(action)(lambda sender: seen.append(flask.g.user))
    with app.test_request_context():
        blinker.signal(action).send(app)
        blinker.signal(action).send(app)
    assert seen == [None, None]
    [warned] = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert warned.startswith("The visitor can't be told; what is launched runs as anonymous.")


def test_an_identity_that_can_not_be_told_launches_nothing_for_logged_in_visitors(
    action: str, facts: Facts
) -> None:
    app, hooks = make_app()
    make_task(hooks, action, auth_level=Auth.LOGGED_IN)
    hooks.identity(lambda: flask.g.user, lambda user: None)
    with app.test_request_context():
        blinker.signal(action).send(app)
    [said] = facts.of("failed")
    assert isinstance(said["exception"], AttributeError)


def test_a_restore_that_raises_fails_the_attempt_and_says_so(action: str, facts: Facts) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_MAX_AGE=0.1)
    make_task(hooks, action)
    hooks.carry("tenant", lambda: "acme", {}.__getitem__)
    ran: list[int] = []
    hooks.receiver(action)(lambda sender: ran.append(1))
    with app.app_context():
        blinker.signal(action).send(app)
        [said] = facts.wait_for("failed")
    assert str(said["exception"]).startswith("KeyError was raised when the visitor, or what hooks")
    assert ran == []


def test_a_restore_that_raises_is_raised_in_an_eager_test(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    hooks.carry("tenant", lambda: "acme", {}.__getitem__)
    with app.app_context(), pytest.raises(KeyError, match="acme"):
        task.dispatch({})


def test_carrying_a_name_twice_is_refused() -> None:
    _, hooks = make_app()
    hooks.carry("locale", dict, lambda locale: None)
    with pytest.raises(ConfigError, match="'locale' is already carried"):
        hooks.carry("locale", dict, lambda locale: None)


def test_cookies_and_authorization_of_the_visitor_do_not_travel(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    seen: list[Any] = []
    app.add_url_rule("/", view_func=lambda: task.dispatch({}))
    hooks.receiver(action)(
        lambda sender: seen.append((dict(flask.request.cookies), flask.request.authorization))
    )
    client = app.test_client()
    client.set_cookie("session_id", "secret")
    client.get("/", auth=("ada", "secret"))
    assert seen == [({}, None)]


def test_another_apps_request_tells_nothing_about_ours(action: str) -> None:
    other, _, _ = with_own_identity()
    app, hooks, _ = with_own_identity()
    task = make_task(hooks, action)
    with (
        hooks.testing(app) as launched,
        other.test_request_context(base_url="https://other.example/a"),
    ):
        flask.g.user = "ada"
        with app.app_context():
            flask.g.user = "bob"
            task.dispatch({})
    [envelope] = launched.envelopes
    assert envelope.user is None
    assert tuple(envelope.origin) == ("http", "localhost", "")


def test_flask_login_without_a_user_loader_is_an_error_at_launch(action: str) -> None:
    app, hooks = make_app(TESTING=True)
    LoginManager(app).request_loader(lambda request: User("ada"))
    make_task(hooks, action)
    with app.test_request_context(), pytest.raises(ConfigError, match="has no user_loader"):
        blinker.signal(action).send(app)
