"""Tasks that launch themselves and each other, in ever greater numbers.

Depth alone, with one task: tests/test_launcher.py. Everything runs as in production, through
JSON and signature; where a bound does not hold, the test's own one ends it.
"""

from __future__ import annotations

from typing import Any

import blinker
import pytest
from flask import Flask, current_app

from async_hooks import AsyncTask, DepthExceeded, current_envelope
from async_hooks.state import state_of
from tests.attacks.attacking import Target
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts

#: Runs after which a loop is held to be endless.
ENDLESS = 5000


class Loop:
    """An app whose tasks send signals when they run, and the depths at which they ran."""

    def __init__(self, **config: Any) -> None:
        self.app, self.hooks = make_app(**config)
        self.depths: list[int] = []

    def task(self, action: str, *sends: str) -> type[AsyncTask]:
        def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
            self.ran()
            for name in sends:
                blinker.signal(name).send(current_app)

        return make_task(self.hooks, action, name=action, run_action=run_action)

    def ran(self) -> None:
        self.depths.append(current_envelope.depth)
        assert len(self.depths) < ENDLESS, "It has no end."

    def start(self, action: str) -> int:
        """Send ``action``, run all that follows, and return how many runs there were."""
        with self.hooks.testing(self.app) as recorder:
            with self.app.app_context():
                blinker.signal(action).send(self.app)
            return recorder.run_all()


def refusals(facts: Facts) -> list[str]:
    errors = [said["exception"] for said in facts.of("failed")]
    assert all(isinstance(error, DepthExceeded) for error in errors), errors
    return [str(error) for error in errors]


def test_a_task_that_launches_itself_ends(action: str, facts: Facts) -> None:
    loop = Loop()
    loop.task(action, action)
    assert loop.start(action) == 6
    assert loop.depths == list(range(6))
    [said] = refusals(facts)
    assert "'ASYNC_HOOKS_MAX_DEPTH'" in said


def test_two_tasks_that_launch_each_other_end(action: str, facts: Facts) -> None:
    loop = Loop()
    loop.task(action, f"{action}_back")
    loop.task(f"{action}_back", action)
    assert loop.start(action) == 6
    [said] = refusals(facts)
    assert "'ASYNC_HOOKS_MAX_DEPTH'" in said


def test_a_receiver_that_sends_its_own_action_ends(action: str, facts: Facts) -> None:
    loop = Loop()
    make_task(loop.hooks, action)

    @loop.hooks.receiver(action, name="again")
    def again(sender: Flask) -> None:
        loop.ran()
        blinker.signal(action).send(sender)

    assert loop.start(action) == 6
    assert len(refusals(facts)) == 1


def test_dispatch_that_goes_too_far_raises(action: str) -> None:
    app, hooks = make_app()

    def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
        type(task).dispatch({})

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context(), pytest.raises(DepthExceeded, match="'ASYNC_HOOKS_MAX_DEPTH'"):
        task.dispatch({})


@pytest.mark.parametrize("launches", [1, 10, 1000])
def test_a_run_that_launches_without_end_ends(action: str, facts: Facts, launches: int) -> None:
    loop = Loop(ASYNC_HOOKS_MAX_LAUNCHES=launches)
    made: list[int] = []

    def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
        while True:
            other.dispatch({})
            made.append(1)
            assert len(made) < ENDLESS, "It has no end."

    other = loop.task(f"{action}_other")
    make_task(loop.hooks, action, run_action=run_action)
    with loop.hooks.testing(loop.app) as recorder, loop.app.app_context():
        blinker.signal(action).send(loop.app)
        with pytest.raises(DepthExceeded):
            recorder.run_all()
    assert len(made) == launches
    assert "'ASYNC_HOOKS_MAX_LAUNCHES'" in refusals(facts)[0]


def test_a_tree_of_launches_ends_at_its_depth(action: str, facts: Facts) -> None:
    loop = Loop(ASYNC_HOOKS_MAX_DEPTH=3)
    loop.task(action, *[f"{action}_back"] * 3)
    loop.task(f"{action}_back", *[action] * 3)
    assert loop.start(action) == 1 + 3 + 9 + 27
    assert all("'ASYNC_HOOKS_MAX_DEPTH'" in text for text in refusals(facts))


def test_receivers_that_each_send_again_end(action: str, facts: Facts) -> None:
    loop = Loop(ASYNC_HOOKS_MAX_DEPTH=3)
    make_task(loop.hooks, action)

    def again(number: int) -> None:
        @loop.hooks.receiver(action, name=f"again {number}")
        def receive(sender: Flask) -> None:
            loop.ran()
            blinker.signal(action).send(sender)

    for number in range(3):
        again(number)
    loop.start(action)
    assert len(loop.depths) == 3 + 9 + 27 + 81
    assert {type(said["exception"]) for said in facts.of("failed")} == {DepthExceeded}


def test_there_is_a_bound_by_default() -> None:
    app, _ = make_app()
    assert 1000 <= state_of(app).config.max_launches <= 10_000


def test_a_wide_run_is_no_loop(action: str, facts: Facts) -> None:
    loop = Loop()
    loop.task(action, *[f"{action}_mail"] * 100)
    loop.task(f"{action}_mail")
    assert loop.start(action) == 101
    assert facts.of("failed") == []


def test_a_busy_request_is_no_loop(action: str, facts: Facts) -> None:
    """The bound is on what runs launch, not on what a visitor's request does."""
    loop = Loop(ASYNC_HOOKS_MAX_LAUNCHES=2)
    loop.task(action)

    @loop.app.route("/")
    def view() -> str:
        for _ in range(50):
            blinker.signal(action).send(current_app)
        return "ok"

    with loop.hooks.testing(loop.app) as recorder:
        assert loop.app.test_client().get("/").status_code == 200
        assert recorder.run_all() == 50
    assert facts.of("failed") == []


def test_the_depth_stands_inside_the_signature() -> None:
    """Or a token caught on the wire could be made to launch without end."""
    token = Target().token()
    assert b'"depth":0' in token
    Target().refuses(token.replace(b'"depth":0', b'"depth":-9'), 401)
