from __future__ import annotations

import asyncio
import functools
import time
from typing import Any
from unittest.mock import Mock

import flask
import pytest
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from async_hooks import (
    AsyncHooksError,
    AsyncTask,
    Discard,
    Retry,
    TransportError,
    async_signal,
    current_envelope,
)
from async_hooks.envelope import Envelope, Origin
from async_hooks.signing import CONTENT_TYPE
from async_hooks.state import state_of
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts


def test_the_fresh_request_is_a_request_of_its_own(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    seen: list[Any] = []
    app.before_request(lambda: seen.append(("before", flask.request.method, flask.request.path)))
    app.teardown_request(lambda error: seen.append(("teardown", error)))

    @hooks.receiver(action)
    def receive(sender: Flask) -> None:
        seen.append(("run", "secret" in flask.session, hasattr(flask.g, "theirs")))

    def view() -> str:
        flask.session["secret"] = 1
        flask.g.theirs = 1
        task.dispatch({})
        return "ok"

    app.add_url_rule("/", view_func=view)
    app.test_client().get("/")
    assert seen == [
        ("before", "GET", "/"),
        ("teardown", None),
        ("before", "POST", "/async-hooks/run"),
        ("run", False, False),
        ("teardown", None),
    ]


def test_scheme_host_and_root_are_those_of_the_triggering_request(action: str) -> None:
    app, hooks = make_app(TRUSTED_HOSTS=["shop.example"])
    task = make_task(hooks, action)
    urls: list[str] = []
    app.add_url_rule("/", "index", lambda: task.dispatch({}))

    @hooks.receiver(action)
    def receive(sender: Flask) -> None:
        urls.append(flask.url_for("index", _external=True))

    app.test_client().get("/", base_url="https://shop.example:8443/de")
    assert urls == ["https://shop.example:8443/de/"]


def test_outside_a_request_urls_are_the_configured_ones(action: str) -> None:
    app, hooks = make_app(
        SERVER_NAME="shop.example", PREFERRED_URL_SCHEME="https", APPLICATION_ROOT="/de"
    )
    task = make_task(hooks, action)
    urls: list[str] = []
    app.add_url_rule("/", "index", lambda: "ok")

    @hooks.receiver(action)
    def receive(sender: Flask) -> None:
        urls.append(flask.url_for("index", _external=True))

    with app.app_context():
        task.dispatch({})
    assert urls == ["https://shop.example/de/"]


def test_a_trusted_host_is_used_where_no_request_named_one(action: str) -> None:
    app, hooks = make_app(TRUSTED_HOSTS=[".shop.example"])
    task = make_task(hooks, action)
    hosts: list[str] = []
    hooks.receiver(action)(lambda sender: hosts.append(flask.request.host))
    with app.app_context():
        task.dispatch({})
    assert hosts == ["shop.example"]


@pytest.mark.parametrize("rule", ["/<path:anything>", "/async-hooks/run"])
def test_no_route_of_the_app_catches_the_run(action: str, rule: str) -> None:
    app, hooks = make_app()
    app.add_url_rule(rule, "everything", lambda **kw: "caught", methods=["GET", "POST"])
    task = make_task(hooks, action)
    ran: list[int] = []
    hooks.receiver(action)(lambda sender: ran.append(1))
    with app.app_context():
        task.dispatch({})
    assert ran == [1]


def test_subdomains_and_host_matching_have_no_say(action: str) -> None:
    app = Flask("tests.app", subdomain_matching=True, host_matching=False)
    app.config.update(SECRET_KEY="k" * 32, SERVER_NAME="shop.example")
    app.config["ASYNC_HOOKS_TRANSPORT"] = "eager"
    from async_hooks import AsyncHooks

    hooks = AsyncHooks(app)
    task = make_task(hooks, action)
    ran: list[str] = []
    hooks.receiver(action)(lambda sender: ran.append(flask.request.host))
    app.add_url_rule("/", view_func=lambda: task.dispatch({}), subdomain="de", endpoint="de")
    app.test_client().get("/", base_url="http://de.shop.example")
    assert ran == ["de.shop.example"]


def test_the_route_alone_runs_nothing() -> None:
    app, _ = make_app()
    with app.test_request_context("/async-hooks/run", method="POST"):
        assert app.full_dispatch_request().status_code == 404


class TestReceivers:
    def test_one_receiver_runs_in_place(self, action: str, facts: Facts) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)
        seen: list[Any] = []
        hooks.receiver(action)(lambda sender: seen.append(current_envelope.receiver))
        with app.app_context():
            task.dispatch({})
        assert seen == [None]
        assert len(facts.of("started")) == 1

    def test_each_of_several_has_a_request_of_its_own(self, action: str, facts: Facts) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)
        requests: list[Any] = []

        def receive(sender: Flask, *, lead: int) -> None:
            requests.append((current_envelope.receiver, current_envelope.depth, id(flask.g)))
            flask.g.seen = flask.g.get("seen", 0) + 1
            assert flask.g.seen == 1

        for name in ("crm", "newsletter", "sales"):
            hooks.receiver(action, name=name)(functools.partial(receive))
        with app.app_context():
            parent = task.dispatch({"lead": 7})
        assert [name for name, _, _ in requests] == ["crm", "newsletter", "sales"]
        children = [said["envelope"] for said in facts.of("succeeded")][1:]
        assert {child.parent_id for child in children} == {parent}
        assert len({child.id for child in children}) == 3

    def test_one_that_fails_leaves_the_others_alone(self, action: str, facts: Facts) -> None:
        app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")
        task = make_task(hooks, action)
        ran: list[str] = []
        hooks.receiver(action, name="broken")(lambda sender: 1 / 0)
        hooks.receiver(action, name="fine")(lambda sender: ran.append("fine"))
        with app.app_context():
            task.dispatch({})
        facts.wait_for("succeeded", 2)
        [failed] = facts.wait_for("failed")
        assert failed["envelope"].receiver == "broken"
        assert isinstance(failed["exception"], ZeroDivisionError)

    def test_splitting_twice_yields_the_same_children(self, action: str) -> None:
        app, hooks = make_app()

        def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
            self.send()
            self.send()

        task = make_task(hooks, action, run_action=run_action)
        ran: list[str] = []
        for name in ("one", "two"):
            hooks.receiver(action, name=name)(lambda sender, name=name: ran.append(name))
        with app.app_context():
            task.dispatch({})
        # Each child runs run_action again, and each of its sends reaches its own receiver.
        assert ran == ["one", "one", "two", "two"]

    def test_a_run_action_that_never_sends_never_fans_out(self, action: str, facts: Facts) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action, run_action=lambda self, data: None)
        for name in ("one", "two"):
            hooks.receiver(action, name=name)(lambda sender: None)
        with app.app_context():
            task.dispatch({})
        assert len(facts.of("started")) == 1

    def test_plain_blinker_receivers_are_reached_in_order(self, action: str) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)
        seen: list[Any] = []

        def closure(number: int) -> Any:
            def receive(sender: Flask) -> None:
                seen.append((number, current_envelope.receiver))

            return receive

        kept = [closure(number) for number in range(3)]
        for receive in kept:
            async_signal(action).connect(receive)
        with app.app_context():
            task.dispatch({})
        name = f"{__name__}.{closure.__qualname__}.<locals>.receive"
        assert seen == [(number, f"{name}#{number + 1}/3") for number in range(3)]

    def test_methods_partials_and_objects_have_names(self, action: str) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)
        seen: list[Any] = []

        class Method:
            def receive(self, sender: Flask) -> None:
                seen.append(current_envelope.receiver)

        class Callable:
            def __call__(self, sender: Flask) -> None:
                seen.append(current_envelope.receiver)

        method, callable_, partial = Method(), Callable(), functools.partial(_note, seen)
        for receive in (method.receive, callable_, partial):
            async_signal(action).connect(receive)
        with app.app_context():
            task.dispatch({})
        assert [name.rpartition(".")[2] for name in seen] == ["receive", "Callable", "_note"]

    def test_a_receiver_of_another_sender_is_not_reached(self, action: str) -> None:
        app, hooks = make_app()
        other, _ = make_app()
        task = make_task(hooks, action)
        ran: list[str] = []
        receive, elsewhere = (lambda sender: ran.append("here")), (lambda sender: ran.append("no"))
        async_signal(action).connect(receive, sender=app)
        async_signal(action).connect(elsewhere, sender=other)
        with app.app_context():
            task.dispatch({})
        assert ran == ["here"]

    def test_async_receivers_are_awaited(self, action: str, facts: Facts) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)

        @hooks.receiver(action)
        async def receive(sender: Flask, *, lead: int) -> int:
            assert current_envelope.id
            return lead + 1

        with app.app_context():
            task.dispatch({"lead": 1})
        assert facts.of("succeeded")[0]["result"] == [2]

    def test_async_receivers_need_no_extra(
        self, action: str, facts: Facts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "asgiref.sync", None)
        self.test_async_receivers_are_awaited(action, facts)

    def test_a_vanished_receiver_is_a_failure_that_names_it(
        self, action: str, facts: Facts
    ) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)
        hooks.receiver(action, name="stays")(lambda sender: None)
        with hooks.testing(app) as launched, app.app_context():
            task.dispatch({})
            launched.envelopes[0] = launched.envelopes[0].for_receiver("gone")
            with pytest.raises(AsyncHooksError, match="No receiver 'gone' is connected to 'wp_as"):
                launched.run_all()

    def test_a_renamed_receiver_is_found_by_its_alias(self, action: str) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)
        ran: list[int] = []
        hooks.receiver(action, name="new", aliases=["old"])(lambda sender: ran.append(1))
        with hooks.testing(app) as launched, app.app_context():
            task.dispatch({})
            launched.envelopes[0] = launched.envelopes[0].for_receiver("old")
            launched.run_all()
        assert ran == [1]

    def test_a_run_that_reaches_nobody_is_reported_once(
        self, action: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action, name="lonely")
        with app.app_context():
            task.dispatch({})
            task.dispatch({})
        lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert lines == [
            f"Task 'lonely' ran and reached no receiver. Connect one to 'wp_async_{action}', "
            "or override run_action."
        ]

    def test_a_task_may_listen_to_an_async_signal(self, action: str) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action, name="first")
        ran: list[Any] = []
        make_task(
            hooks,
            f"wp_async_{action}",
            name="second",
            run_action=lambda self, data: ran.append(data),
        )
        with app.app_context():
            task.dispatch({"lead": 1})
        assert ran == [{"lead": 1}]


def _note(seen: list[Any], sender: Flask) -> None:
    seen.append(current_envelope.receiver)


def test_send_works_inside_run_action_only(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    with app.app_context(), pytest.raises(AsyncHooksError, match="works inside run_action"):
        task().send()


def test_current_envelope_is_falsy_outside_a_run() -> None:
    assert not current_envelope


def test_current_envelope_tells_about_the_run(action: str) -> None:
    app, hooks = make_app()
    seen: list[Any] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        assert current_envelope
        seen.append(
            (
                current_envelope.id,
                current_envelope.attempt,
                current_envelope.task,
                current_envelope.receiver,
                current_envelope.depth,
            )
        )

    task = make_task(hooks, action, run_action=run_action, name="t")
    with app.app_context():
        envelope_id = task.dispatch({})
    assert seen == [(envelope_id, 1, "t", None, 0)]


def test_it_is_visible_to_before_request_functions(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    seen: list[bool] = []
    app.before_request(lambda: seen.append(bool(current_envelope)))
    with app.app_context():
        task.dispatch({})
    assert seen == [True]


def test_nothing_set_on_a_task_outlives_a_run(action: str) -> None:
    app, hooks = make_app()
    seen: list[bool] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        seen.append(hasattr(self, "left"))
        self.left = 1  # type: ignore[attr-defined]

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        task.dispatch({})
        task.dispatch({})
    assert seen == [False, False]


class TestOutcomes:
    """What each end of a run means, in process, where the relay settles it."""

    def outcome(self, action: str, error: Exception) -> tuple[Flask, type[AsyncTask]]:
        app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")

        def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
            raise error

        return app, make_task(hooks, action, run_action=run_action)

    def test_an_exception_goes_to_the_apps_error_handlers(self, action: str, facts: Facts) -> None:
        app, task = self.outcome(action, KeyError("lead"))
        handled: list[Any] = []

        @app.errorhandler(KeyError)
        def handle(error: KeyError) -> tuple[str, int]:
            handled.append(error)
            return "handled", 200

        with app.app_context():
            task.dispatch({})
        [said] = facts.wait_for("failed")
        assert handled == [said["exception"]]
        assert facts.of("succeeded") == []

    def test_an_unhandled_one_is_flasks_to_log(
        self, action: str, facts: Facts, caplog: pytest.LogCaptureFixture
    ) -> None:
        app, task = self.outcome(action, ValueError("no\r\nsuch lead"))
        with app.app_context():
            envelope_id = task.dispatch({})
        facts.wait_for("failed")
        task_line = next(r for r in caplog.records if r.name == "async_hooks")
        assert envelope_id in task_line.getMessage()
        assert "ValueError: no\\r\\nsuch lead" in task_line.getMessage()
        assert task_line.exc_info is None

    def test_discard_is_reported_as_discarded(self, action: str, facts: Facts) -> None:
        app, task = self.outcome(action, Discard("duplicate"))
        with app.app_context():
            task.dispatch({})
        [said] = facts.wait_for("discarded")
        assert said["error"] == "Discard: duplicate"

    def test_retry_without_an_outbox_is_a_failure_that_says_so(
        self, action: str, facts: Facts, caplog: pytest.LogCaptureFixture
    ) -> None:
        app, task = self.outcome(action, Retry(after=60))
        with app.app_context():
            task.dispatch({})
        facts.wait_for("failed")
        assert len(facts.of("started")) == 1

    def test_a_failing_teardown_is_a_failure(self, action: str, facts: Facts) -> None:
        app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")
        task = make_task(hooks, action, run_action=lambda self, data: None)

        def commit(error: BaseException | None) -> None:
            if current_envelope:
                raise OSError("the database is gone")

        app.teardown_request(commit)
        with app.app_context():
            task.dispatch({})
        [said] = facts.wait_for("failed")
        assert isinstance(said["exception"], OSError)

    def test_a_before_request_in_the_way_is_named(self, action: str, facts: Facts) -> None:
        app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_MAX_AGE=0.1)
        task = make_task(hooks, action)
        app.before_request(lambda: ("log in first", 401))
        with app.app_context():
            task.dispatch({})
        [said] = facts.wait_for("failed")
        assert isinstance(said["exception"], TransportError)
        assert "answered 401" in str(said["exception"])
        assert "current_envelope" in str(said["exception"])

    def test_the_documented_recipe_lets_the_run_pass(self, action: str, facts: Facts) -> None:
        app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")
        task = make_task(hooks, action, run_action=lambda self, data: None)

        @app.before_request
        def demand_login() -> Any:
            if current_envelope:
                return None
            return "log in first", 401

        with app.app_context():
            task.dispatch({})
        facts.wait_for("succeeded")
        assert app.test_client().get("/").status_code == 401


def test_a_mock_is_a_receiver_like_any_other(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    first, second = Mock(), Mock()
    for mock in (first, second):
        async_signal(action).connect(mock)
    with app.app_context():
        task.dispatch({"lead": 7})
    first.assert_called_once_with(app, lead=7)
    second.assert_called_once_with(app, lead=7)


def test_a_failing_after_request_is_a_failure_and_no_success(action: str, facts: Facts) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")
    task = make_task(hooks, action, run_action=lambda self, data: None)

    @app.after_request
    def commit(response: flask.Response) -> flask.Response:
        if current_envelope:
            raise OSError("the database is gone")
        return response

    with app.app_context():
        task.dispatch({})
    [said] = facts.wait_for("failed")
    assert isinstance(said["exception"], OSError)
    assert facts.of("succeeded") == []


def test_dispatch_in_a_run_is_off_outside_run_action(action: str) -> None:
    app, hooks = make_app()
    ran: list[int] = []
    task = make_task(hooks, action, run_action=lambda self, data: ran.append(1))
    app.add_url_rule("/", view_func=lambda: "ok")

    @app.before_request
    def count() -> None:
        if not current_envelope:
            task.dispatch({})
        else:
            with pytest.raises(AsyncHooksError, match="outside its run_action"):
                task.dispatch({})

    app.test_client().get("/")
    assert ran == [1]


def test_the_way_of_the_loopback_is_not_taken_for_the_visitors(action: str) -> None:
    app, hooks = make_app()
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_prefix=1)  # type: ignore[method-assign]
    inner = Flask("tests.app")
    inner.config.update(SECRET_KEY=app.config["SECRET_KEY"], ASYNC_HOOKS_TRANSPORT="eager")
    inner.wsgi_app = ProxyFix(inner.wsgi_app, x_host=1, x_prefix=1)  # type: ignore[method-assign]
    hooks.init_app(inner)
    urls: list[str] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        urls.append(flask.url_for("index", _external=True))

    make_task(hooks, action, name="t", run_action=run_action)
    inner.add_url_rule("/", "index", lambda: "ok")
    envelope = Envelope(id="1", task="t", body="{}", origin=Origin("https", "shop.example", ""))
    token = state_of(inner).signing.sign(envelope, now=time.time())
    answer = inner.test_client().post(
        "/async-hooks/run",
        data=token,
        content_type=CONTENT_TYPE,
        headers={"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil"},
    )
    assert answer.status_code == 204
    assert urls == ["https://shop.example/"]


@pytest.mark.parametrize("fails", [False, True])
def test_an_asynchronous_run_action_is_run_to_its_end(
    action: str, facts: Facts, fails: bool
) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")

    async def run_action(self: AsyncTask, data: dict[str, Any]) -> int:
        await asyncio.sleep(0)
        return int(1 / data["n"])

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        task.dispatch({"n": 0 if fails else 1})
    if fails:
        [failed] = facts.wait_for("failed")
        assert isinstance(failed["exception"], ZeroDivisionError)
    else:
        [succeeded] = facts.wait_for("succeeded")
        assert succeeded["result"] == 1
