from __future__ import annotations

import threading
from typing import Any

import blinker
import flask
import pytest
from flask import Flask, current_app

from async_hooks import (
    AsyncHooks,
    AsyncTask,
    ConfigError,
    DataError,
    DepthExceeded,
    SkipTask,
    async_signal,
    current_envelope,
)
from tests.support.apps import make_app, make_task, plain_app
from tests.support.facts import Facts


def heard(hooks: AsyncHooks, on: str | blinker.Signal, name: str = "heard") -> list[Any]:
    """Connect a receiver that keeps what it was sent."""
    received: list[Any] = []

    @hooks.receiver(on, name=name)
    def keep(sender: Flask, **kwargs: Any) -> None:
        received.append((sender, kwargs))

    return received


def test_a_name_in_the_default_namespace_triggers(action: str) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    received = heard(hooks, action)
    with app.app_context():
        blinker.signal(action).send("anyone", lead=7)
    assert received == [(app, {"lead": 7})]


def test_a_signal_object_triggers(action: str) -> None:
    app, hooks = make_app()
    signal = blinker.Namespace().signal(action)
    make_task(hooks, signal)
    received = heard(hooks, signal)
    with app.app_context():
        blinker.signal(action).send(app)
        assert received == []
        signal.send(app)
    assert received == [(app, {})]


def test_flasks_own_signals_trigger() -> None:
    app, hooks = make_app()
    make_task(hooks, flask.message_flashed)
    received = heard(hooks, flask.message_flashed)

    @app.get("/")
    def view() -> str:
        flask.flash("saved")
        return "ok"

    app.test_client().get("/")
    assert received == [(app, {"message": "saved", "category": "message"})]


@pytest.mark.parametrize("name", ["request_started", "request_finished", "request_tearing_down"])
def test_signals_about_the_endpoints_own_request_never_launch(name: str, facts: Facts) -> None:
    app, hooks = make_app()
    prepare: Any = {"prepare_data": lambda self, sender, /, **kwargs: {}}
    signal = getattr(flask, name)
    make_task(hooks, signal, **prepare)
    received = heard(hooks, signal)
    app.add_url_rule("/", view_func=lambda: "ok")
    app.test_client().get("/")
    assert received == [(app, {})]
    assert len(facts.of("launched")) == 1


def test_a_signal_in_a_thread_with_a_pushed_context_launches(action: str) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    received = heard(hooks, action)

    def work() -> None:
        with app.app_context():
            blinker.signal(action).send(app)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [(app, {})]


def test_a_signal_without_a_context_launches_nothing_and_says_so(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    received = heard(hooks, action)
    assert blinker.signal(action).send(app)[0][1] is None
    blinker.signal(action).send(app)
    assert received == []
    assert [r.message for r in caplog.records if "outside of an application" in r.message] != []


@pytest.mark.parametrize("is_mixed_up", [False, True], ids=["no AsyncHooks", "another one"])
def test_a_signal_in_an_app_whose_init_app_was_forgotten_is_warned_of_once(
    action: str, caplog: pytest.LogCaptureFixture, is_mixed_up: bool
) -> None:
    app, hooks = plain_app(), AsyncHooks()
    if is_mixed_up:
        AsyncHooks(app)
    for name in ("order", "another"):
        make_task(hooks, action, name=name)
    with app.app_context():
        for _ in range(2):
            blinker.signal(action).send(app)
    [line] = [record.getMessage() for record in caplog.records]
    assert "was sent, and not launched: no app has its AsyncHooks. Call init_app(app)" in line


def test_a_signal_in_an_app_of_others_is_none_of_its_business(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, hooks = make_app()
    make_task(hooks, action)
    other = plain_app()
    with other.app_context():
        blinker.signal(action).send(other)
    assert caplog.records == []


def test_the_launching_receiver_returns_the_id(action: str, facts: Facts) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    with app.app_context():
        [(_, envelope_id)] = blinker.signal(action).send(app)
    assert [said["envelope"].id for said in facts.of("launched")] == [envelope_id]


def test_only_the_current_apps_tasks_launch(action: str) -> None:
    _, first_hooks = make_app()
    second, second_hooks = make_app()
    make_task(first_hooks, action)
    make_task(second_hooks, action)
    in_first, in_second = heard(first_hooks, action), heard(second_hooks, action)
    with second.app_context():
        blinker.signal(action).send()
    assert (in_first, in_second) == ([], [(second, {})])


def test_one_extension_serves_several_apps(action: str) -> None:
    hooks = AsyncHooks()
    make_task(hooks, action)
    received = heard(hooks, action)
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        app.config.update(SECRET_KEY="k" * 32, ASYNC_HOOKS_TRANSPORT="eager")
        hooks.init_app(app)
    for app in apps:
        with app.app_context():
            blinker.signal(action).send()
    assert received == [(apps[0], {}), (apps[1], {})]


@pytest.mark.parametrize("registers_first", [False, True])
def test_of_what_a_factory_defines_at_each_call_the_newest_runs_and_nothing_beside_it(
    action: str, *, registers_first: bool
) -> None:
    hooks = AsyncHooks()
    said: list[Any] = []

    def create_app(number: int) -> Flask:
        app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
        if not registers_first:
            hooks.init_app(app)

        @hooks.register
        class Local(AsyncTask):
            action = name

            def prepare_data(self, sender: Any, /) -> dict[str, Any]:
                said.append(("prepared", number))
                return {}

        @hooks.receiver(name)
        def receive(sender: Flask) -> None:
            said.append(("received", number))

        if registers_first:
            hooks.init_app(app)
        app.add_url_rule("/", view_func=lambda: Local.dispatch({}))
        return app

    name = action
    apps: list[Flask] = []
    for number in range(3):
        apps.append(create_app(number))
        for app in apps:
            said.clear()
            with app.app_context():
                blinker.signal(action).send()
            assert said == [("prepared", number), ("received", number)]
            said.clear()
            app.test_client().get("/")
            assert said == [("received", number)]
    assert len(blinker.signal(action).receivers) == 1
    assert len(async_signal(action).receivers) == 1


def test_a_dead_app_leaves_no_connections(action: str) -> None:
    import gc

    def scope() -> None:
        _, hooks = make_app()
        make_task(hooks, action)
        heard(hooks, action)

    scope()
    gc.collect()
    assert not blinker.signal(action).receivers
    assert not async_signal(action).receivers


def test_several_tasks_on_one_action_are_each_delivered(action: str) -> None:
    app, hooks = make_app()
    ran = []
    for name in ("one", "two"):
        make_task(hooks, action, name=name, run_action=lambda self, data: ran.append(self.name))
    with app.app_context():
        ids = [result for _, result in blinker.signal(action).send(app)]
    assert sorted(ran) == ["one", "two"]
    assert len(set(ids)) == 2


def test_skip_task_cancels(action: str, facts: Facts) -> None:
    app, hooks = make_app()

    def prepare_data(self: AsyncTask, sender: Any, /) -> dict[str, Any]:
        raise SkipTask

    make_task(hooks, action, prepare_data=prepare_data)
    with app.app_context():
        assert blinker.signal(action).send(app)[0][1] is None
    assert facts.said == []


def test_keyword_arguments_called_self_and_sender_arrive(action: str) -> None:
    app, hooks = make_app()
    arrived: list[Any] = []
    make_task(hooks, action, run_action=lambda self, data: arrived.append(data))
    with app.app_context():
        blinker.signal(action).send(app, self=1, task=2, state=3)
    assert arrived == [{"self": 1, "task": 2, "state": 3}]


class TestFailingPrepareData:
    @staticmethod
    def failing(action: str, **config: Any) -> Flask:
        app, hooks = make_app(**config)

        def prepare_data(self: AsyncTask, sender: Any, /) -> dict[str, Any]:
            raise ValueError("no such lead")

        make_task(hooks, action, prepare_data=prepare_data, name="leads")
        app.add_url_rule("/", view_func=lambda: str(blinker.signal(action).send(app)[0][1]))
        return app

    def test_never_breaks_the_request(
        self, action: str, facts: Facts, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = self.failing(action)
        assert app.test_client().get("/").text == "None"
        [said] = facts.of("failed")
        assert (said["envelope"].task, said["envelope"].attempt) == ("leads", 0)
        assert isinstance(said["exception"], ValueError)
        [record] = caplog.records
        assert "'leads'" in record.getMessage()
        assert "could not be launched" in record.getMessage()
        assert record.exc_info

    @pytest.mark.parametrize("config", [{"TESTING": True}, {"PROPAGATE_EXCEPTIONS": True}])
    def test_propagates_where_flask_propagates(self, action: str, config: dict[str, Any]) -> None:
        app = self.failing(action, **config)
        with pytest.raises(ValueError, match="no such lead"):
            app.test_client().get("/")


def test_data_that_cannot_travel_never_breaks_the_request(action: str, facts: Facts) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    with app.app_context():
        assert blinker.signal(action).send(app, lead=object())[0][1] is None
    assert isinstance(facts.of("failed")[0]["exception"], DataError)


def test_dispatch_launches_without_a_signal(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    received = heard(hooks, action)
    with app.app_context():
        envelope_id = task.dispatch({"lead": 7})
    assert received == [(app, {"lead": 7})]
    assert len(envelope_id) == 32


def test_dispatch_raises_on_data_that_cannot_travel(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    with app.app_context(), pytest.raises(DataError, match=r"data\['lead'\]"):
        task.dispatch({"lead": object()})


def test_the_snapshot_is_not_changed_by_later_changes(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    received = heard(hooks, action)

    def view() -> str:
        data = {"leads": [1]}
        task.dispatch(data)
        data["leads"].append(2)
        return "ok"

    app.add_url_rule("/", view_func=view)
    app.test_client().get("/")
    assert received == [(app, {"leads": [1]})]


def test_a_task_that_launches_itself_is_stopped_by_depth(action: str, facts: Facts) -> None:
    app, hooks = make_app(ASYNC_HOOKS_MAX_DEPTH=3)
    depths: list[int] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        depths.append(current_envelope.depth)
        blinker.signal(action).send(current_app)

    make_task(hooks, action, run_action=run_action)
    with app.app_context():
        blinker.signal(action).send(app)
    assert depths == [0, 1, 2, 3]
    [said] = facts.of("failed")
    assert isinstance(said["exception"], DepthExceeded)
    assert "'ASYNC_HOOKS_MAX_DEPTH' allows 3" in str(said["exception"])


def test_unknown_address_without_fallback_is_an_error_at_launch(action: str) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="loopback", ASYNC_HOOKS_FALLBACK=None)
    task = make_task(hooks, action)
    with app.app_context(), pytest.raises(ConfigError, match="'ASYNC_HOOKS_URL' is not set"):
        task.dispatch({})


def test_a_listener_that_raises_is_logged_and_ignored(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    from async_hooks.signals import task_launched

    def broken(sender: Any, /, **kwargs: Any) -> None:
        raise RuntimeError("metrics are down")

    app, hooks = make_app()
    task = make_task(hooks, action)
    received = heard(hooks, action)
    with task_launched.connected_to(broken, app), app.app_context():
        task.dispatch({})
    assert received == [(app, {})]
    assert "A listener of task_launched raised" in caplog.text


def test_a_run_may_launch_as_many_as_are_allowed_and_no_more(action: str, facts: Facts) -> None:
    app, hooks = make_app(ASYNC_HOOKS_MAX_LAUNCHES=3)
    made: list[int] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        for number in range(10):
            other.dispatch({})
            made.append(number)

    other = make_task(hooks, f"{action}_other", name="other")
    hooks.receiver(f"{action}_other", name="one")(lambda sender: None)
    task = make_task(hooks, action, run_action=run_action)
    with hooks.testing(app) as launched, app.app_context():
        task.dispatch({})
        with pytest.raises(DepthExceeded, match="'ASYNC_HOOKS_MAX_LAUNCHES' allows"):
            launched.run_all()
    assert made == [0, 1, 2]
    assert len(facts.of("failed")) == 1


def test_the_receivers_of_a_run_are_no_launches(action: str) -> None:
    app, hooks = make_app(ASYNC_HOOKS_MAX_LAUNCHES=2)
    task = make_task(hooks, action)
    ran: list[str] = []
    for name in ("one", "two", "three"):
        hooks.receiver(action, name=name)(lambda sender, name=name: ran.append(name))
    with app.app_context():
        task.dispatch({})
    assert ran == ["one", "two", "three"]


def test_a_wrong_priority_is_refused_and_loses_nothing(action: str, facts: Facts) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    with hooks.testing(app) as launched, app.test_request_context():
        task.dispatch({})
        with pytest.raises(
            ConfigError, match="expected 'priority' to be an int, up to a million, got: '1'"
        ):
            task.dispatch({}, priority="1")  # type: ignore[arg-type]
    assert len(launched.envelopes) == 1


def test_what_is_carried_counts_as_size(action: str) -> None:
    app, hooks = make_app(ASYNC_HOOKS_MAX_BYTES=1000)
    hooks.carry("blob", lambda: "x" * 600, lambda value: None)
    task = make_task(hooks, action)
    with app.app_context():
        task.dispatch({"text": "x" * 300})
        with pytest.raises(DataError, match="less what is carried beside it"):
            task.dispatch({"text": "x" * 600})


def test_a_run_that_launches_in_another_app_launches_there(action: str) -> None:
    other = plain_app(ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db", ASYNC_HOOKS_RELAY=False)
    others = AsyncHooks(other)
    there = make_task(others, f"{action}-there")
    app, hooks = make_app()
    here = make_task(hooks, action)

    @hooks.receiver(action, name="crosses")
    def cross(sender: Flask) -> None:
        with other.app_context():
            there.dispatch({"n": 1})

    with app.app_context():
        here.dispatch({})
    with other.app_context():
        assert others.outbox.counts()["available"] == 1
