"""What holds for the attempts at an envelope: who says so, in which order."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.local import LocalProxy

from async_hooks import AsyncHooks
from async_hooks.envelope import DISCARDED, Envelope
from async_hooks.receivers import RunOptions, options_of
from async_hooks.state import state_of
from tests.support.apps import make_app, make_task, plain_app
from tests.support.facts import Facts


class Shop:
    """An app with an outbox, whose task and receiver declare what a test wants."""

    def __init__(self, action: str) -> None:
        self.action = action
        self.app = plain_app(
            ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db",
            ASYNC_HOOKS_RELAY=False,
            ASYNC_HOOKS_MAX_ATTEMPTS=9,
        )
        self.hooks = AsyncHooks(self.app)

    def task(self, **members: Any) -> None:
        make_task(self.hooks, self.action, name="task", **members)

    def receiver(self, name: str, **options: Any) -> None:
        self.hooks.receiver(self.action, name=name, **options)(lambda sender: None)

    def options(self, receiver: str | None = None, task: str = "task") -> RunOptions:
        envelope = Envelope(id="1", task=task, body="{}", receiver=receiver)
        return options_of(state_of(self.app), envelope)


@pytest.fixture
def shop(action: str) -> Shop:
    return Shop(action)


def test_attempts_are_the_receivers_the_tasks_or_the_configured(shop: Shop) -> None:
    shop.task(max_attempts=4)
    shop.receiver("own", max_attempts=2)
    shop.receiver("none")
    assert shop.options("own").max_attempts == 2
    assert shop.options("none").max_attempts == shop.options().max_attempts == 4
    assert shop.options(task="unknown").max_attempts == 9


def test_the_news_of_a_discarded_delivery_is_tried_once(shop: Shop) -> None:
    shop.task(max_attempts=4)
    assert shop.options(DISCARDED).max_attempts == 1


def test_the_backoff_is_the_receivers_or_the_tasks(shop: Shop) -> None:
    shop.task(backoff=lambda self, failures: 100 * failures)
    shop.receiver("own", backoff=lambda failures: 0)
    shop.receiver("none")
    assert shop.options("own").backoff(3) == 0
    assert shop.options("none").backoff(3) == shop.options().backoff(3) == 300


@pytest.mark.parametrize("wrong", ["soon", -1, None])
def test_who_has_no_seconds_to_say_is_logged_and_the_next_is_asked(
    shop: Shop, wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shop.task(backoff=lambda self, failures: wrong)
    shop.receiver("own", backoff=lambda failures: wrong)
    assert 4 <= shop.options("own").backoff(1) <= 6
    assert [record.getMessage() for record in caplog.records] == [
        "The backoff of 'own' did not return seconds.",
        "The backoff of 'task' did not return seconds.",
    ]
    assert 4 <= shop.options(task="unknown").backoff(1) <= 6


def test_a_task_that_cannot_be_made_has_the_default_backoff(shop: Shop) -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("no app context")

    shop.task(__init__=refuse)
    assert 4 <= shop.options().backoff(1) <= 6


def test_what_a_job_returns_is_not_asked_to_be_awaited(action: str, facts: Facts) -> None:
    class Shy:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="eager")
    returned: list[Any] = [LocalProxy(lambda: Shy()), Shy(), LocalProxy(lambda: [][0])]

    @hooks.job(name=action)
    def touch(number: int) -> Any:
        return returned[number]

    with app.app_context():
        for number in range(3):
            touch.enqueue(number)
    assert len(facts.of("succeeded")) == 3
    assert facts.of("failed") == []
