"""Plain functions as tasks."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from async_hooks import AsyncHooks, ConfigError, DataError, OutboxRequired
from async_hooks.jobs import Job
from tests.support.apps import make_app, plain_app


def test_a_job_runs_in_a_fresh_request_with_its_data() -> None:
    app, hooks = make_app()
    ran: list[Any] = []

    @hooks.job
    def resize(width: int, *, height: int) -> None:
        """Resize it."""
        ran.append((width, height))

    with app.app_context():
        assert resize.enqueue(width=1, height=2)
    assert ran == [(1, 2)]
    assert resize.__doc__ == "Resize it."


def test_a_job_is_still_the_function() -> None:
    _, hooks = make_app()

    @hooks.job
    def double(n: int) -> int:
        return 2 * n

    assert double(4) == 8


def test_a_job_is_known_by_its_function_s_name_or_its_own() -> None:
    _, hooks = make_app()
    assert hooks.job(named).task.name == f"{__name__}.named"
    assert hooks.job(other, name="other").task.name == "other"


def named() -> None: ...


def other() -> None: ...


def test_a_coroutine_is_awaited() -> None:
    app, hooks = make_app()
    ran: list[int] = []

    @hooks.job(name="coroutine")
    async def later(n: int) -> None:
        ran.append(n)

    with app.app_context():
        later.enqueue(n=3)
    assert ran == [3]


def test_data_named_like_our_own_parameters_travels() -> None:
    app, hooks = make_app()
    ran: list[dict[str, Any]] = []

    @hooks.job(name="any")
    def take(**data: Any) -> None:
        ran.append(data)

    with app.app_context():
        take.enqueue(self=1, data=2, sender=3, task=4, delay=5)
    assert ran == [{"self": 1, "data": 2, "sender": 3, "task": 4, "delay": 5}]


def test_what_can_t_travel_is_refused() -> None:
    app, hooks = make_app()

    @hooks.job(name="refusing")
    def take(**data: Any) -> None: ...

    with app.app_context():
        with pytest.raises(TypeError, match="by name only"):
            take.enqueue(1)  # type: ignore[call-arg]  # pyright: ignore
        with pytest.raises(DataError, match=r"data\['thing'\]"):
            take.enqueue(thing=object())


def test_options_are_a_task_s() -> None:
    hooks = AsyncHooks()

    @hooks.job(queue="slow", max_attempts=7, backoff=lambda attempt: 3, ref=lambda data: "r")
    def slow() -> None: ...

    task = slow.task
    assert (task.queue, task.max_attempts, task().backoff(1), task().ref({})) == ("slow", 7, 3, "r")
    with pytest.raises(OutboxRequired, match="'queue' of task"):
        hooks.init_app(plain_app())


def test_another_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="'retries' is no option of a job"):
        AsyncHooks().job(retries=3)(named)


def test_a_job_that_a_factory_defined_before_runs_as_its_newest() -> None:
    hooks = AsyncHooks()
    ran: list[int] = []

    def create_app(number: int) -> tuple[Flask, Job[[], None]]:
        app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
        hooks.init_app(app)

        @hooks.job
        def clean() -> None:
            ran.append(number)

        return app, clean

    for app, job in [create_app(number) for number in range(2)]:
        with app.app_context():
            job.enqueue()
    assert ran == [1, 1]
