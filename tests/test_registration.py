"""A receiver alone is enough: the default task of its action, and what takes its place."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import blinker
import pytest
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, ConfigError, DataError, current_envelope
from async_hooks.cli import cli
from async_hooks.receivers import kinds_of
from async_hooks.state import state_of
from async_hooks.worker.worker import Options, Work
from tests.support.apps import make_app, make_task, plain_app


class Reached:
    """A receiver that notes the task that reached it, and with what."""

    def __init__(self) -> None:
        self.by: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, sender: Flask, **data: Any) -> None:
        self.by.append((current_envelope.task, data))


def send(app: Flask, action: str, **data: Any) -> list[str]:
    """Send ``action`` in ``app``; return the ids of what that launched."""
    with app.app_context():
        results = [result for _, result in blinker.signal(action).send(app, **data)]
    return [result for result in results if result is not None]


def outbox_app(folder: Path) -> tuple[Flask, AsyncHooks]:
    url = f"sqlite:///{folder / 'outbox.db'}"
    app, hooks = make_app(
        ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_OUTBOX=url, ASYNC_HOOKS_RELAY=False
    )
    return app, hooks


def work(app: Flask) -> None:
    Work(app, Options(name="w1", drain=True)).run()


def test_an_action_with_a_receiver_and_no_task_launches_what_it_is_sent_with(action: str) -> None:
    app, hooks = make_app()
    one, two = Reached(), Reached()
    hooks.receiver(action, name="one")(one)
    hooks.receiver(action, name="two")(two)
    assert len(send(app, action, n=1, tags=["a"])) == 1
    assert one.by == two.by == [(f"default:{action}", {"n": 1, "tags": ["a"]})]


def test_what_can_not_travel_is_an_error_as_of_any_task(action: str) -> None:
    app, hooks = make_app(PROPAGATE_EXCEPTIONS=True)
    hooks.receiver(action)(Reached())
    with pytest.raises(DataError, match="data\\['post'\\] is "):
        send(app, action, post=object())


@pytest.mark.parametrize("order", ["task first", "receiver first"])
def test_a_task_of_the_action_takes_its_place(action: str, order: str) -> None:
    app, hooks = make_app()
    reached = Reached()
    if order == "receiver first":
        hooks.receiver(action)(reached)
    make_task(hooks, action, name="mine")
    if order == "task first":
        hooks.receiver(action)(reached)
    assert len(send(app, action, n=1)) == 1
    assert reached.by == [("mine", {"n": 1})]


def test_a_task_that_comes_after_the_first_send_takes_its_place(action: str) -> None:
    app, hooks = make_app()
    reached = Reached()
    hooks.receiver(action)(reached)
    send(app, action)
    make_task(hooks, action, name="mine")
    send(app, action)
    assert [task for task, _ in reached.by] == [f"default:{action}", "mine"]


@pytest.mark.parametrize("order", ["task first", "receiver first", "aliased"])
def test_what_a_default_task_launched_is_run_where_another_has_its_place(
    action: str, tmp_path: Path, order: str
) -> None:
    web, hooks = outbox_app(tmp_path)
    hooks.receiver(action, name="one")(Reached())
    [launched] = send(web, action, n=1)
    # Another release, in another process: it never sends.
    worker, others = outbox_app(tmp_path)
    reached = Reached()
    if order == "receiver first":
        others.receiver(action, name="one")(reached)
    aliases = (f"default:{action}",) if order == "aliased" else ()
    seen: list[Any] = []

    def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
        seen.append(data)

    make_task(others, action, name="mine", aliases=aliases, run_action=run_action)
    if order != "receiver first":
        others.receiver(action, name="one")(reached)
    work(worker)
    assert state_of(web).outbox.get(launched).state == "completed"
    if order == "aliased":
        assert (seen, reached.by) == ([{"n": 1}], [])
    else:
        assert (seen, reached.by) == ([], [(f"default:{action}", {"n": 1})])


def test_a_process_that_never_sends_knows_and_runs_them(action: str, tmp_path: Path) -> None:
    web, hooks = outbox_app(tmp_path)
    hooks.receiver(action, name="one")(Reached())
    hooks.receiver(action, name="two")(Reached())
    [launched] = send(web, action, n=1)
    worker, others = outbox_app(tmp_path)
    reached = Reached()
    others.receiver(action, name="two", aliases=["one"])(reached)
    default = f"default:{action}"
    kinds = {(default, each) for each in ("", "one", "two")}
    assert kinds <= kinds_of(state_of(worker))
    outbox = state_of(web).outbox
    work(worker)
    assert {each.receiver for each in outbox.find(parent=launched)} == {"one", "two"}
    assert outbox.get(launched).state == "completed"
    assert reached.by == [(default, {"n": 1})] * 2


def test_only_the_apps_of_its_hooks_launch_it(action: str) -> None:
    app, hooks = make_app()
    other, others = make_app()
    ours, theirs = Reached(), Reached()
    hooks.receiver(action)(ours)
    make_task(others, action, name="theirs")
    others.receiver(action)(theirs)
    second = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
    hooks.init_app(second)
    assert [len(send(each, action)) for each in (app, other, second)] == [1, 1, 1]
    assert [task for task, _ in ours.by] == [f"default:{action}"] * 2
    assert [task for task, _ in theirs.by] == ["theirs"]


def test_signals_of_one_name_share_it_and_each_launches(action: str) -> None:
    app, hooks = make_app()
    reached, mine = Reached(), blinker.Namespace().signal(action)
    hooks.receiver(action, name="one")(reached)
    hooks.receiver(mine, name="two")(lambda sender, **data: None)
    with app.app_context():
        assert len(mine.send(app, n=1)) == len(blinker.signal(action).send(app, n=2)) == 1
    assert [data["n"] for _, data in reached.by] == [1, 2]
    make_task(hooks, action, name="late")
    with app.app_context():
        assert mine.send(app, n=3) == []


def test_the_visitor_of_a_nopriv_signal_needs_a_task(action: str) -> None:
    app, hooks = make_app()
    hooks.receiver(f"nopriv_{action}")(Reached())
    assert send(app, f"nopriv_{action}") == []


def test_it_ends_with_its_hooks(action: str) -> None:
    app, hooks = make_app()
    hooks.receiver(action)(Reached())
    [trigger] = blinker.signal(action).receivers.values()
    assert isinstance(trigger, weakref.ref)
    del app, hooks
    gc.collect()
    assert not blinker.signal(action).receivers


def test_check_says_of_a_default_task_what_is_true_of_it(action: str, tmp_path: Path) -> None:
    app, hooks = outbox_app(tmp_path)
    state_of(app).outbox.create()

    def connect() -> None:
        hooks.receiver(action)(lambda sender: None)

    connect()
    result = app.test_cli_runner().invoke(cli, ["check"])
    assert (result.exit_code, result.output) == (0, "0 unfinished deliveries, all known.\n")


# -- by name


def test_a_task_is_dispatched_by_its_name_or_alias_with_the_options_of_a_launch(
    action: str, tmp_path: Path
) -> None:
    app, hooks = outbox_app(tmp_path)
    make_task(hooks, action, name="shop.order", aliases=["order"])
    hooks.receiver(f"{action}_alone")(Reached())
    with app.app_context():
        ids = [
            hooks.dispatch("shop.order", {"n": 1}, queue="mail", priority=3),
            hooks.dispatch("order", {"n": 2}, delay=60),
            hooks.dispatch(f"default:{action}_alone", {"n": 3}),
        ]
        found = [hooks.outbox.get(each) for each in ids]
    assert [each.data["n"] for each in found if each] == [1, 2, 3]
    assert [each.task for each in found if each][:2] == ["shop.order"] * 2
    assert found[0] is not None
    assert (found[0].queue, found[0].priority) == ("mail", 3)


def test_an_unknown_name_is_an_error_that_names_the_nearest(action: str) -> None:
    app, hooks = make_app()
    with app.app_context():
        with pytest.raises(ConfigError, match=r"No task is called 'shop\.ordre'\. Is its"):
            hooks.dispatch("shop.ordre", {})
        make_task(hooks, action, name="shop.order")
        with pytest.raises(ConfigError, match=r"'shop\.ordre'\. Did you mean 'shop\.order'\?"):
            hooks.dispatch("shop.ordre", {})
        with pytest.raises(TypeError, match="queu"):
            hooks.dispatch("shop.order", {}, queu="mail")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_the_task_of_other_hooks_is_not_of_this_app(action: str) -> None:
    app, _ = make_app()
    _, others = make_app()
    make_task(others, action, name="theirs")
    with app.app_context(), pytest.raises(ConfigError, match="'theirs' is not registered for"):
        others.dispatch("theirs", {})
