from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import blinker
import pytest
from flask import Flask

from async_hooks import (
    AsyncHooks,
    AsyncTask,
    Auth,
    ConfigError,
    NoAppContext,
    OutboxRequired,
    Retry,
    async_signal,
)
from tests.support.apps import make_app, make_task, plain_app


class Module(AsyncTask):
    action = "module_action"


def test_name_is_module_and_qualified_name() -> None:
    assert Module.name == f"{__name__}.Module"


def test_a_subclass_has_a_name_of_its_own() -> None:
    class Sub(Module):
        pass

    assert Sub.name.endswith("test_a_subclass_has_a_name_of_its_own.<locals>.Sub")


@pytest.mark.parametrize("command", [["app.py"], ["-m", "app"]])
def test_a_class_in_main_is_named_as_if_its_file_were_imported(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "app.py").write_text(
        "from async_hooks import AsyncTask\nclass T(AsyncTask): action = 'a'\nprint(T.name)\n"
    )
    run = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "app.T\n"


def test_an_async_signal_has_the_exact_name_of_the_action() -> None:
    assert async_signal("lead") is blinker.signal("wp_async_lead")
    assert async_signal(blinker.Namespace().signal("user-logged in")).name == (
        "wp_async_user-logged in"
    )


def declared(**members: Any) -> type[AsyncTask]:
    return type("Declared", (AsyncTask,), members)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (declared(), "'Declared' has no 'action'"),
        (declared(action=""), "expected an action to be a signal's name"),
        (declared(action=blinker.Signal()), "a signal with a name"),
        (declared(action="a", auth_level=0), "expected 'auth_level' to be an Auth"),
        (declared(action="a", auth_level=4), "expected 'auth_level' to be an Auth"),
        (declared(action="a", auth_level="both"), "expected 'auth_level' to be an Auth"),
        (declared(action="a", priority="high"), "expected 'priority' to be an int"),
        (declared(action="a", timeout=0), "expected 'timeout' to be a positive number"),
        (declared(action="a", delay=-1), "expected 'delay' to be a number of seconds, 0 or more"),
        (declared(action="a", max_attempts=0), "expected 'max_attempts' to be a positive whole"),
        (declared(action="a", queue=""), "expected 'queue' to be a name"),
        (object(), "expected a subclass of AsyncTask"),
        (AsyncTask(), "expected a subclass of AsyncTask"),
    ],
)
def test_a_wrong_declaration_is_refused_when_it_is_registered(task: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AsyncHooks().register(task)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_attempt", "max_attempts"),
        ("max_attemps", "max_attempts"),
        ("maxAttempts", "max_attempts"),
        ("time_out", "timeout"),
        ("alias", "aliases"),
        ("queues", "queue"),
        ("uniquekey", "unique_key"),
        ("back_off", "backoff"),
        ("prepare_date", "prepare_data"),
        ("runaction", "run_action"),
        ("auth", "auth_level"),
        ("max_retries", "max_attempts"),
        ("queue_name", "queue"),
        ("auth_levl", "auth_level"),
    ],
)
def test_a_misspelt_attribute_is_refused_with_the_nearest_name(name: str, meant: str) -> None:
    task = declared(action="a", **{name: 3})
    below = type("Below", (task,), {})
    for each in (task, below):
        with pytest.raises(ConfigError, match=f"{name!r} is no .* Did you mean {meant!r}"):
            AsyncHooks().register(each)


@pytest.mark.parametrize(
    "name",
    [
        *("sender", "subject", "template", "names", "refs", "rename", "run", "url"),
        *("send_mail", "load_order", "finished_at", "timeout_of", "prepare_data_for", "reference"),
        *("_max_attempt", "TIMEOUT", "database", "schedule", "client", "cache_key", "prepare_by"),
    ],
)
def test_an_attribute_of_its_own_is_the_task_s_business(name: str) -> None:
    task = declared(action="a", **{name: 3})
    assert AsyncHooks().register(task) is task


def test_what_a_mixin_brings_along_is_its_own_business() -> None:
    mixin = type("Mixin", (), {"queues": ()})
    task = type("Mixed", (mixin, AsyncTask), {"action": "a"})
    assert AsyncHooks().register(task) is task


@pytest.mark.parametrize("key", ["prepare_data", "run_action", "backoff", "finish", "discarded"])
def test_what_is_called_is_a_function(key: str) -> None:
    with pytest.raises(ConfigError, match=f"expected '{key}' to be a function, got: 3"):
        AsyncHooks().register(declared(action="a", **{key: 3}))
    with pytest.raises(ConfigError, match="'news': expected 'backoff' to be a function, got: 3"):
        AsyncHooks().receiver("a", name="news", backoff=3)(print)  # type: ignore[arg-type]  # pyright: ignore


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("delay", 60),
        ("queue", "slow"),
        ("max_attempts", 3),
        ("unique_key", lambda self, data: "x"),
        ("backoff", lambda self, attempt: 1),
        ("finish", lambda self, result, data: None),
        ("discarded", lambda self, data, error: None),
    ],
)
def test_what_only_an_outbox_can_keep_is_refused_by_name(key: str, value: Any) -> None:
    task = declared(action="a", **{key: value})
    with pytest.raises(OutboxRequired, match=f"'{key}' of task "):
        make_app()[1].register(task)
    hooks = AsyncHooks()
    hooks.register(task)  # It is not known yet whether there will be one.
    with pytest.raises(OutboxRequired, match=f"'{key}' of task "):
        hooks.init_app(plain_app())
    hooks.init_app(plain_app(ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db"))


@pytest.mark.parametrize(
    "wish", [{"delay": 1}, {"run_at": "now"}, {"queue": "slow"}, {"unique_key": "k"}]
)
def test_dispatch_refuses_what_only_an_outbox_can_keep(wish: dict[str, Any], action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    with app.app_context(), pytest.raises(OutboxRequired, match=f"'{next(iter(wish))}'"):
        task.dispatch({}, **wish)


def test_a_receiver_with_retries_needs_an_outbox() -> None:
    _, hooks = make_app()
    with pytest.raises(OutboxRequired, match="'max_attempts' of receiver 'news'"):
        hooks.receiver("a", name="news", max_attempts=10)(print)
    later = AsyncHooks()
    later.receiver("a", name="news", backoff=lambda failures: 1)(print)
    with pytest.raises(OutboxRequired, match="'backoff' of receiver 'news'"):
        later.init_app(plain_app())


@pytest.mark.parametrize("after", ["soon", -1, float("inf"), float("nan"), 1e12])
def test_a_retry_after_no_time_is_refused_where_it_is_raised(after: Any) -> None:
    with pytest.raises(ValueError, match="a number of seconds, 0 or more"):
        Retry(after=after)


def test_dispatch_needs_an_app_context() -> None:
    with pytest.raises(NoAppContext, match=r"with app\.app_context"):
        Module.dispatch({})


def test_dispatch_needs_an_app_with_hooks() -> None:
    with Flask("other").app_context(), pytest.raises(ConfigError, match="has no AsyncHooks"):
        Module.dispatch({})


def test_dispatch_needs_a_registered_task() -> None:
    app, _ = make_app()
    with app.app_context(), pytest.raises(ConfigError, match=r"is not registered for 'tests\.app'"):
        Module.dispatch({})


def test_two_tasks_of_one_name_are_refused() -> None:
    hooks = AsyncHooks()
    hooks.register(declared(action="a", name="same"))
    with pytest.raises(ConfigError, match="'same' is already the name of another task"):
        hooks.register(declared(action="b", name="same"))
    with pytest.raises(ConfigError, match="'same' is already the name of another task"):
        hooks.register(declared(action="b", name="new", aliases=["same"]))


def test_registering_a_task_twice_connects_it_once(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    assert hooks.register(task) is task
    with app.app_context():
        assert len(blinker.signal(action).send(app)) == 1


def test_auth_is_a_flag() -> None:
    assert Auth.LOGGED_IN | Auth.LOGGED_OUT is Auth.BOTH


@pytest.mark.parametrize("name", ["prepare", "discard", "queued", "dispatcher", "on_finish"])
def test_a_method_may_have_a_name_that_is_like_one_of_ours(name: str) -> None:
    task = declared(action="a", **{name: lambda self: None})
    assert AsyncHooks().register(task) is task
