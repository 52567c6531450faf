"""What users' tests stand on: eager, hooks.testing(app), and the pytest fixture."""

from __future__ import annotations

from typing import Any

import blinker
import pytest
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, Auth, TransportError
from async_hooks.recorder import Recorder
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts


def test_eager_raises_what_the_receiver_raises_in_the_test(action: str) -> None:
    app, hooks = make_app(TESTING=True)
    make_task(hooks, action)
    hooks.receiver(action)(lambda sender: 1 / 0)
    app.add_url_rule("/", view_func=lambda: blinker.signal(action).send(app) and "ok")
    with pytest.raises(ZeroDivisionError):
        app.test_client().get("/")


def test_eager_raises_outside_a_request_too(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action, run_action=lambda self, data: 1 / 0)
    with app.app_context(), pytest.raises(ZeroDivisionError):
        task.dispatch({})


def test_eager_runs_the_others_before_it_raises(action: str) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    ran: list[str] = []
    hooks.receiver(action, name="broken")(lambda sender: 1 / 0)
    hooks.receiver(action, name="fine")(lambda sender: ran.append("fine"))
    app.add_url_rule("/", view_func=lambda: blinker.signal(action).send(app) and "ok")
    with pytest.raises(ZeroDivisionError):
        app.test_client().get("/")
    assert ran == ["fine"]


def test_eager_keeps_productions_data_rules(action: str) -> None:
    app, hooks = make_app()
    seen: list[Any] = []
    task = make_task(hooks, action, run_action=lambda self, data: seen.append(data))
    with app.app_context():
        task.dispatch({"ids": (1, 2)})
    assert seen == [{"ids": [1, 2]}]


class TestTesting:
    def test_holds_back_what_is_launched(self, action: str) -> None:
        app, hooks = make_app()
        ran: list[Any] = []
        make_task(hooks, action, name="t", run_action=lambda self, data: ran.append(data))
        with hooks.testing(app) as launched:
            app.add_url_rule("/", view_func=lambda: str(blinker.signal(action).send(app, lead=7)))
            app.test_client().get("/")
            [envelope] = launched.envelopes
            assert (envelope.task, envelope.data, ran) == ("t", {"lead": 7}, [])
            assert launched.run_all() == 1
            assert (launched.envelopes, ran) == ([], [{"lead": 7}])

    def test_run_all_runs_what_runs_launch(self, action: str) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action)
        ran: list[str] = []
        for name in ("one", "two"):
            hooks.receiver(action, name=name)(lambda sender, name=name: ran.append(name))
        with hooks.testing(app) as launched, app.app_context():
            task.dispatch({})
            assert launched.run_all() == 3
        assert ran == ["one", "two"]

    def test_run_all_raises_and_keeps_the_rest(self, action: str) -> None:
        app, hooks = make_app()
        task = make_task(hooks, action, run_action=lambda self, data: 1 / data["by"])
        with hooks.testing(app) as launched, app.app_context():
            task.dispatch({"by": 0})
            task.dispatch({"by": 1})
            with pytest.raises(ZeroDivisionError):
                launched.run_all()
            assert [envelope.data["by"] for envelope in launched.envelopes] == [0, 1]

    def test_ends_with_its_block(self, action: str) -> None:
        app, hooks = make_app()
        ran: list[int] = []
        task = make_task(hooks, action, run_action=lambda self, data: ran.append(1))
        with hooks.testing(app):
            pass
        with app.app_context():
            task.dispatch({})
        assert ran == [1]

    def test_needs_no_address(self, action: str) -> None:
        app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="loopback", ASYNC_HOOKS_FALLBACK=None)
        task = make_task(hooks, action)
        with hooks.testing(app) as launched, app.app_context():
            task.dispatch({})
        assert len(launched.envelopes) == 1


class TestFixture:
    @pytest.fixture
    def app(self) -> Flask:
        app, self.hooks = make_app()
        return app

    hooks: AsyncHooks

    def test_async_hooks_holds_back_what_the_app_launches(
        self, app: Flask, async_hooks: Recorder, action: str
    ) -> None:
        task: type[AsyncTask] = make_task(self.hooks, action, run_action=lambda self, data: None)
        with app.app_context():
            envelope_id = task.dispatch({})
        assert [envelope.id for envelope in async_hooks.envelopes] == [envelope_id]
        assert async_hooks.run_all() == 1


def test_a_run_that_a_before_request_stops_is_raised_in_the_test(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    app.before_request(lambda: ("log in first", 302))
    with hooks.testing(app) as launched, app.app_context():
        task.dispatch({})
        with pytest.raises(TransportError, match="Let it pass when"):
            launched.run_all()


def test_a_discarded_run_is_told(action: str, facts: Facts) -> None:
    app, hooks = make_app()
    hooks.identity(lambda: None, lambda user: None)
    task = make_task(hooks, action, auth_level=Auth.LOGGED_IN)
    with hooks.testing(app) as launched, app.app_context():
        task.dispatch({}, user="gone")
        launched.run_all()
    assert len(facts.of("discarded")) == 1
