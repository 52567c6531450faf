"""What users' tests stand on: eager, hooks.testing(app), and the pytest fixture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import blinker
import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import create_environ

from async_hooks import AsyncHooks, AsyncTask, Auth, TransportError
from async_hooks.envelope import Envelope
from async_hooks.errors import ConfigError, OutboxUnavailable
from async_hooks.recorder import Recorder
from async_hooks.state import state_of
from async_hooks.wsgi import drain
from tests.support.apps import make_app, make_task, plain_app
from tests.support.facts import Facts
from tests.support.waiting import wait_until

#: An outbox that would show in each launch that reached it.
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


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


class Objects:
    """A transport of the user's."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, envelope: Envelope) -> None:
        self.sent.append(envelope.id)


class TestHoldingBack:
    """Under TESTING, what nothing records is held back."""

    @pytest.mark.parametrize(
        "config",
        [
            {"ASYNC_HOOKS_TRANSPORT": "loopback"},
            {"ASYNC_HOOKS_TRANSPORT": "loopback", "ASYNC_HOOKS_FALLBACK": None},
            {"ASYNC_HOOKS_TRANSPORT": "in_process"},
            {"ASYNC_HOOKS_TRANSPORT": "in_process", "ASYNC_HOOKS_OUTBOX": NOWHERE},
        ],
        ids=lambda config: " ".join(map(str, config.values())),
    )
    def test_holds_back_whatever_the_base_configuration_names(
        self, action: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        app, hooks = make_app(**config)
        ran: list[int] = []
        task = make_task(hooks, action, run_action=lambda self, data: ran.append(1))
        app.add_url_rule("/", view_func=lambda: blinker.signal(action).send(app) and "ok")
        app.testing = True  # As tests do, after the factory.
        with caplog.at_level("INFO", "async_hooks"):
            assert app.test_client().get("/").text == "ok"
            with app.app_context():
                task.dispatch({})
        app.testing = False
        memory: Any = state_of(app).memory
        memory.stop(20)  # Would run what waits.
        assert ran == []
        [record] = caplog.records
        assert "is TESTING, so its launches are held back" in record.getMessage()

    def test_what_is_held_is_bounded_and_the_last_stays(self, action: str) -> None:
        app, hooks = make_app(
            TESTING=True, ASYNC_HOOKS_TRANSPORT="loopback", ASYNC_HOOKS_QUEUE_SIZE=3
        )
        task = make_task(hooks, action)
        with app.app_context():
            for number in range(10):
                task.dispatch({"number": number})
        held: Any = state_of(app).memory
        assert [envelope.data["number"] for envelope in held.envelopes] == [7, 8, 9]

    def test_a_block_begins_empty_and_leaves_the_app_as_it_was(self, action: str) -> None:
        app, hooks = make_app(
            TESTING=True, ASYNC_HOOKS_TRANSPORT="loopback", ASYNC_HOOKS_OUTBOX=NOWHERE
        )
        task = make_task(hooks, action, run_action=lambda self, data: None)
        with app.app_context():
            task.dispatch({"when": "before"})
            with hooks.testing(app) as launched:
                task.dispatch({"when": "within"})
                assert [envelope.data["when"] for envelope in launched.envelopes] == ["within"]
                assert launched.run_all() == 1
            task.dispatch({"when": "after"})
            app.testing = False
            with pytest.raises(OutboxUnavailable):
                task.dispatch({"when": "in production"})

    def test_a_database_in_memory_will_do(self, action: str) -> None:
        db = SQLAlchemy()
        app = plain_app(TESTING=True, SQLALCHEMY_DATABASE_URI="sqlite://", ASYNC_HOOKS_OUTBOX="app")
        db.init_app(app)
        hooks = AsyncHooks(app, db=db)
        task = make_task(hooks, action)

        app.add_url_rule("/", view_func=lambda: task.dispatch({}))
        assert len(app.test_client().get("/").text) == 32

    def test_no_server_of_a_test_relays_what_waits(self, tmp_path: Path, action: str) -> None:
        app, hooks = make_app(
            ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_OUTBOX=f"sqlite:///{tmp_path}/o.db"
        )
        app.config.update(TESTING=True, ASYNC_HOOKS_TESTING="live")
        task = make_task(hooks, action, run_action=lambda self, data: None)
        environ = {**create_environ("/"), "SERVER_SOFTWARE": "a live server"}
        with app.app_context():
            task.dispatch({})
            app.config["ASYNC_HOOKS_TESTING"] = None
            drain(app({**environ}, lambda *a: lambda data: None))
            relay: Any = app.extensions["async_hooks"].relay
            assert relay._pool[os.getpid()].threads == []
            app.config["ASYNC_HOOKS_TESTING"] = "live"
            drain(app({**environ}, lambda *a: lambda data: None))
            wait_until(lambda: hooks.outbox.counts()["completed"] == 1)
        relay.stop(0)

    @pytest.mark.parametrize("outbox", [None, NOWHERE])
    def test_an_object_gets_what_is_launched(self, action: str, outbox: str | None) -> None:
        objects = Objects()
        app, hooks = make_app(
            TESTING=True, ASYNC_HOOKS_TRANSPORT=objects, ASYNC_HOOKS_OUTBOX=outbox
        )
        task = make_task(hooks, action)
        with app.app_context():
            launched = task.dispatch({})
        wait_until(lambda: objects.sent == [launched])
        memory: Any = state_of(app).memory
        memory.stop(0)

    def test_live_launches_as_in_production(self, action: str) -> None:
        app, hooks = make_app(
            TESTING=True, ASYNC_HOOKS_TESTING="live", ASYNC_HOOKS_TRANSPORT="in_process"
        )
        ran: list[int] = []
        task = make_task(hooks, action, run_action=lambda self, data: ran.append(1))
        with app.app_context():
            task.dispatch({})
        memory: Any = state_of(app).memory
        memory.stop(20)
        assert ran == [1]

    def test_another_value_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="'ASYNC_HOOKS_TESTING' to be None or 'live'"):
            make_app(ASYNC_HOOKS_TESTING=True)
