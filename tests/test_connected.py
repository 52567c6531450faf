"""Receivers without a name of their own: which of them an app reaches, and who finds them again."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flask import Flask

from async_hooks import (
    AsyncHooks,
    AsyncHooksError,
    AsyncTask,
    ConfigError,
    async_signal,
)
from async_hooks.actions import nopriv_signal
from async_hooks.receivers import kinds_of, receivers_of
from async_hooks.state import state_of
from async_hooks.task import Auth
from tests.support.apps import make_app, make_task, plain_app

Receive = Callable[..., Any]


def post(ran: list[Any], number: int, sender: Flask) -> None:
    ran.append(number)


class Method:
    def __init__(self, ran: list[Any], number: int) -> None:
        self.ran, self.number = ran, number

    def receive(self, sender: Flask) -> None:
        self.ran.append(self.number)


class Callable_(Method):  # noqa: N801 - it would hide typing's
    def __call__(self, sender: Flask) -> None:
        self.receive(sender)


class Slotted:
    __slots__ = ("number", "ran")

    def __init__(self, ran: list[Any], number: int) -> None:
        self.ran, self.number = ran, number

    def __call__(self, sender: Flask) -> None:
        self.ran.append(self.number)


def closure(ran: list[Any], number: int) -> Receive:
    def receive(sender: Flask) -> None:
        ran.append(number)

    return receive


def decorated(function: Receive) -> Receive:
    def inner(sender: Flask) -> None:
        function(sender)

    return inner


MAKERS: dict[str, Callable[[list[Any], int], Receive]] = {
    "closures": closure,
    "lambdas": lambda ran, number: lambda sender: ran.append(number),
    "partials": lambda ran, number: partial(post, ran, number),
    "methods": lambda ran, number: Method(ran, number).receive,
    "callables": Callable_,
    "without weak references": Slotted,
    "decorated": lambda ran, number: decorated(closure(ran, number)),
}


@pytest.fixture(autouse=True)
def _earlier_app() -> None:
    """In a process with one app, whatever is connected is for that."""
    AsyncHooks(plain_app())


@pytest.fixture(params=list(MAKERS.values()), ids=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[[list[Any], int], Receive]:
    made: Callable[[list[Any], int], Receive] = request.param
    return made


def connect(action: str, *receivers: Receive) -> None:
    for receiver in receivers:
        async_signal(action).connect(receiver, weak=False)


def durable() -> tuple[Flask, AsyncHooks]:
    return make_app(ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db", ASYNC_HOOKS_RELAY=False)


def launch(app: Flask, task: type[AsyncTask]) -> None:
    with app.app_context():
        task.dispatch({})


def names(app: Flask, task: type[AsyncTask]) -> list[str]:
    """Return the last part of each name."""
    found = receivers_of(state_of(app), task, anonymous=True)
    return [name.rpartition(".")[2] for name in found]


# -- several that one run would reach


def test_with_an_outbox_receivers_of_one_name_are_refused_at_the_first_launch(
    action: str, make: Callable[[list[Any], int], Receive]
) -> None:
    app, hooks = durable()
    task = make_task(hooks, action, name="order")
    ran: list[int] = []
    connect(action, *(make(ran, number) for number in range(3)))
    expected = r"3 receivers of task 'order' are called '.*hooks\.receiver\(…, name=…\)"
    for _ in range(2):
        with pytest.raises(ConfigError, match=expected):
            launch(app, task)
    assert ran == []


def test_without_an_outbox_all_are_reached_and_one_warning_names_them(
    action: str, make: Callable[[list[Any], int], Receive], caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action, name="order")
    ran: list[int] = []
    connect(action, *(make(ran, number) for number in range(3)))
    for _ in range(2):
        launch(app, task)
    assert ran == [0, 1, 2] * 2
    [line] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert line.startswith("3 receivers of task 'order' are called ")


def test_receivers_that_come_after_the_first_launch_are_looked_at_too(action: str) -> None:
    app, hooks = durable()
    task = make_task(hooks, action)
    ran: list[int] = []
    connect(action, closure(ran, 1))
    launch(app, task)
    connect(action, closure(ran, 2))
    with pytest.raises(ConfigError, match="2 receivers of task"):
        launch(app, task)


def test_receivers_with_names_of_their_own_are_welcome(action: str) -> None:
    app, hooks = durable()
    task = make_task(hooks, action)
    ran: list[int] = []
    for number in range(3):
        hooks.receiver(action, name=f"number {number}")(closure(ran, number))
    connect(action, closure(ran, 3))
    launch(app, task)
    assert ran == [0, 1, 2, 3]


def test_a_receiver_and_a_plain_one_of_its_name_are_two(action: str) -> None:
    app, hooks = durable()
    task = make_task(hooks, action)
    receive = closure([], 1)
    connect(action, hooks.receiver(action)(receive))
    with pytest.raises(ConfigError, match="2 receivers of task"):
        launch(app, task)


@pytest.mark.parametrize("level", Auth)
def test_only_those_that_one_run_reaches_count(action: str, level: Auth) -> None:
    app, hooks = durable()
    hooks.identity(lambda: None, lambda user: None)
    task = make_task(hooks, action, auth_level=level, name="order")
    receive = closure([], 1)
    async_signal(action).connect(receive)
    nopriv_signal(action).connect(receive)
    expected = "is for|2 receivers|both signals" if level & Auth.LOGGED_OUT else "launches for"
    with pytest.raises(AsyncHooksError, match=expected):
        launch(app, task)


@pytest.mark.parametrize("make", [partial, Callable_, Slotted], ids=lambda kind: kind.__name__)
def test_what_is_called_but_no_function_has_a_name(action: str, make: Any) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    ran: list[int] = []
    receiver = partial(post, ran, 1) if make is partial else make(ran, 1)
    hooks.receiver(action)(receiver)
    launch(app, task)
    assert ran == [1]
    assert names(app, task) == ["post" if make is partial else make.__name__]


# -- a child, and what has become of its receiver


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_child_whose_receiver_is_gone_runs_no_other(action: str, left: int) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    ran: list[int] = []
    partials = [partial(post, ran, number) for number in range(3)]
    connect(action, *partials)
    with hooks.testing(app) as launched:
        launch(app, task)
        with pytest.raises(AsyncHooksError):  # Only the split ran: the children are held.
            _run_one_and_remove(launched, action, partials, left)
    assert ran == []


def _run_one_and_remove(
    launched: Any, action: str, partials: list[partial[None]], left: int
) -> None:
    [parent] = launched.envelopes
    launched.envelopes.clear()
    launched._immediate.submit(parent)
    assert [child.parent_id for child in launched.envelopes] == [parent.id] * 3
    for number in range(left, 3):
        async_signal(action).disconnect(partials[number])
    launched.run_all()


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_a_waiting_child_is_claimed_by_no_code_that_has_two_of_its_name(
    action: str, first: bool
) -> None:
    app, hooks = durable()
    task = make_task(hooks, action, name="order")
    ran: list[int] = []
    own, other = partial(post, ran, 1), partial(post, ran, 2)
    connect(action, own)
    kind = ("order", f"{__name__}.post")
    assert kind in kinds_of(state_of(app))
    if first:
        async_signal(action).disconnect(own)
        connect(action, other, own)
    else:
        connect(action, other)
    assert names(app, task) == ["post#1/2", "post#2/2"]
    assert kind not in kinds_of(state_of(app))
    async_signal(action).disconnect(other)
    assert kind in kinds_of(state_of(app))


def test_a_reordered_partial_is_refused_in_either_order(action: str) -> None:
    app, hooks = durable()
    task = make_task(hooks, action)
    one, two = (partial(post, [], number) for number in (1, 2))
    for order in ((one, two), (two, one)):
        connect(action, *order)
        with pytest.raises(ConfigError, match="2 receivers of task"):
            launch(app, task)
        for receiver in order:
            async_signal(action).disconnect(receiver)


def test_kinds_are_those_of_every_visitor(action: str) -> None:
    app, hooks = durable()
    make_task(hooks, action, name="order")
    receive = closure([], 1)
    async_signal(action).connect(receive)
    nopriv_signal(action).connect(receive)
    found = {name.rpartition(".")[2] for _, name in kinds_of(state_of(app))}
    assert found == {"", "#discarded", "#finished", "receive", "receive#1/2", "receive#2/2"}


# -- one factory, several apps


class Factory:
    """Makes apps of one AsyncHooks, each of which connects a receiver of its own."""

    def __init__(self, action: str, make: Callable[[list[Any], int], Receive]) -> None:
        self.hooks = AsyncHooks()
        self.task = make_task(self.hooks, action)
        self.ran: list[int] = []
        self._action = action
        self._make = make
        self._number = 0

    def __call__(self, *, before: bool) -> Flask:
        app = plain_app(ASYNC_HOOKS_TRANSPORT="eager", ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db")
        self._number += 1
        if before:
            connect(self._action, self._make(self.ran, self._number))
        self.hooks.init_app(app)
        if not before:
            connect(self._action, self._make(self.ran, self._number))
        return app


@pytest.mark.parametrize("before", [True, False], ids=["before init_app", "after init_app"])
def test_of_two_live_apps_of_one_factory_the_newest_receiver_counts(
    action: str, make: Callable[[list[Any], int], Receive], before: bool
) -> None:
    create_app = Factory(action, make)
    first = create_app(before=before)
    launch(first, create_app.task)
    second = create_app(before=before)
    for app in (first, second):
        launch(app, create_app.task)
    assert create_app.ran == [1, 2, 2]


def test_a_receiver_for_one_app_alone_is_that_app_s(action: str) -> None:
    hooks = AsyncHooks()
    task = make_task(hooks, action)
    ran: list[int] = []
    apps = [plain_app(ASYNC_HOOKS_TRANSPORT="eager") for _ in range(2)]
    for number, app in enumerate(apps):
        hooks.init_app(app)
        async_signal(action).connect(closure(ran, number), sender=app, weak=False)
    for app in apps:
        launch(app, task)
    assert ran == [0, 1]


def test_all_of_one_period_count_however_many_apps_follow(action: str) -> None:
    ran: list[int] = []
    connect(action, *(closure(ran, number) for number in range(3)))
    hooks = AsyncHooks()
    task = make_task(hooks, action)
    for _ in range(2):
        app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
        hooks.init_app(app)
        launch(app, task)
    assert ran == [0, 1, 2] * 2


def test_what_one_decorator_made_of_two_functions_is_two_receivers(action: str) -> None:
    ran: list[str] = []
    connect(action, decorated(lambda sender: ran.append("of the first module")))
    app, hooks = make_app()
    task = make_task(hooks, action)
    connect(action, decorated(lambda sender: ran.append("of a module imported later")))
    launch(app, task)
    assert ran == ["of the first module", "of a module imported later"]


def test_a_receiver_at_the_place_of_one_that_is_gone_is_a_new_one(action: str) -> None:
    """Whatever is connected may have the address of what was."""
    app, hooks = make_app()
    task = make_task(hooks, action)
    ran: list[int] = []
    for number in range(20):
        gone = closure(ran, number)
        connect(action, gone)
        AsyncHooks(plain_app())
        async_signal(action).disconnect(gone)
        del gone
        newest = closure(ran, number)
        connect(action, newest)
        launch(app, task)
        async_signal(action).disconnect(newest)
    assert ran == [*range(20)]


def test_what_is_disconnected_is_not_kept_alive(action: str) -> None:
    receive = closure([], 1)
    gone = weakref.ref(receive)
    connect(action, receive)
    AsyncHooks(plain_app())
    async_signal(action).disconnect(receive)
    del receive
    gc.collect()
    assert gone() is None


ONE_APP = """
from flask import Flask
from async_hooks import AsyncHooks, AsyncTask, async_signal

ran = []
hooks = AsyncHooks()

@hooks.register
class Order(AsyncTask):
    action = "ordered"

def connect(number):
    receiver = lambda sender: ran.append(number)
    async_signal("ordered").connect(receiver, weak=False)

connect(1)
app = Flask("shop")
app.config.update(SECRET_KEY="k" * 32, ASYNC_HOOKS_TRANSPORT="eager")
hooks.init_app(app)
connect(2)
with app.app_context():
    Order.dispatch({})
assert ran == [1, 2], ran
"""


def test_in_a_process_with_one_app_all_receivers_are_its_own() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", ONE_APP], check=True)


def test_what_is_left_out_and_differs_is_warned_of_once(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = []

    def connect(partner: str) -> None:
        def tell(sender: Any, **_: Any) -> str:
            return partner

        kept.append(tell)
        async_signal(action).connect(tell)

    app, hooks = make_app()
    make_task(hooks, action)
    connect("crm")
    AsyncHooks(plain_app())
    connect("news")
    task = state_of(app).tasks.find("tests.Task")
    assert task is not None
    for _ in range(2):
        assert len(receivers_of(state_of(app), task, anonymous=True)) == 1
    assert caplog.text.count("of the latest app of this process only") == 1
