"""Plain functions as tasks."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from werkzeug.datastructures import MultiDict

from async_hooks import AsyncHooks, ConfigError, DataError, OutboxRequired
from async_hooks.jobs import Job
from tests.support.apps import make_app, plain_app
from tests.support.facts import Facts


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


class Resizer:
    def __init__(self, ran: list[int]) -> None:
        self.ran = ran

    def __call__(self, width: int) -> None:
        self.ran.append(width)


def test_a_partial_or_an_object_that_is_called_is_a_job_too() -> None:
    app, hooks = make_app()
    ran: list[int] = []
    of_object, of_partial = hooks.job(Resizer(ran)), hooks.job(functools.partial(_resize, ran))
    assert of_object.task.name == f"{__name__}.Resizer"
    assert of_partial.task.name == f"{__name__}._resize"
    with app.app_context():
        of_object.enqueue(width=1)
        of_partial.enqueue(width=2)
    assert ran == [1, 2]
    with pytest.raises(ConfigError, match="is already the name of another task"):
        hooks.job(functools.partial(_resize, ran))


def _resize(ran: list[int], width: int) -> None:
    ran.append(width)


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
        with pytest.raises(TypeError, match=r"'refusing'.*by name only"):
            take.enqueue(1)  # type: ignore[call-arg]  # pyright: ignore
        with pytest.raises(DataError, match=r"data\['thing'\]"):
            take.enqueue(thing=object())


@pytest.fixture
def resized() -> Iterator[tuple[Job[..., None], list[Any]]]:
    """A job of an app whose context is pushed, and what it was called with."""
    app, hooks = make_app()
    ran: list[Any] = []

    @hooks.job(name="resize")
    def resize(width: int, height: int = 2, *, unit: str = "px") -> None:
        ran.append((width, height, unit))

    with app.app_context():
        yield resize, ran


def test_arguments_are_given_as_to_the_function(resized: tuple[Job[..., None], list[Any]]) -> None:
    resize, ran = resized
    resize.enqueue(1)
    resize.enqueue(1, 3, unit="em")
    resize.enqueue(height=4, width=1)
    resize.dispatch({"width": 5})
    assert ran == [(1, 2, "px"), (1, 3, "em"), (1, 4, "px"), (5, 2, "px")]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "Job 'resize': missing a required argument: 'width'"),
        ((1, 2, 3), {}, "Job 'resize': too many positional arguments. All others travel by name"),
        ((1,), {"width": 2}, "Job 'resize': multiple values for argument 'width'"),
        ((1,), {"hieght": 2}, "'hieght'. Did you mean 'height'?"),
        ((1,), {"colour": 2}, "Job 'resize': got an unexpected keyword argument 'colour'."),
        ((1,), {"queue": "slow"}, "For an option of the launch, use job.dispatch({…}, queue=…)."),
        ((1,), {"delay": 60}, "use job.dispatch({…}, delay=…)."),
    ],
)
def test_arguments_that_do_not_fit_are_a_type_error_at_once(
    resized: tuple[Job[..., None], list[Any]],
    facts: Facts,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    message: str,
) -> None:
    resize, ran = resized
    with pytest.raises(TypeError, match=re.escape(message)):
        resize.enqueue(*args, **kwargs)
    assert (ran, facts.said) == ([], [])


@pytest.mark.parametrize("data", [{}, {"width": 1, "colour": 2}, {"width": 1, "queue": "slow"}])
def test_dispatch_checks_the_arguments_as_well(
    resized: tuple[Job[..., None], list[Any]], data: dict[str, Any]
) -> None:
    resize, ran = resized
    with pytest.raises(TypeError, match="Job 'resize': "):
        resize.dispatch(data)
    assert ran == []


@pytest.mark.parametrize("data", [None, [("width", 1)], {1: 2}, MultiDict({"width": 1})])
def test_dispatch_refuses_what_is_no_data(
    resized: tuple[Job[..., None], list[Any]], data: Any
) -> None:
    with pytest.raises(DataError):
        resized[0].dispatch(data)


def test_a_form_is_refused_with_its_remedy(resized: tuple[Job[..., None], list[Any]]) -> None:
    with pytest.raises(DataError, match=r"data\['width'\].*\.to_dict\(flat=False\)"):
        resized[0].enqueue(MultiDict([("size", "s"), ("size", "m")]))


def test_dispatch_takes_the_options_of_a_launch() -> None:
    app = plain_app(ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db", ASYNC_HOOKS_RELAY=False)
    hooks = AsyncHooks(app)

    @hooks.job
    def resize(width: int) -> None: ...

    with app.app_context():
        first = resize.dispatch({"width": 1}, queue="images", priority=3, unique_key="one")
        assert resize.dispatch({"width": 1}, unique_key="one") == first
        later = hooks.outbox.get(resize.dispatch({"width": 2}, delay=timedelta(hours=1)))
        delivery = hooks.outbox.get(first)
        with pytest.raises(TypeError, match="'queu'"):
            resize.dispatch({"width": 1}, queu="images")  # type: ignore[call-arg]  # pyright: ignore
    assert delivery is not None
    assert later is not None
    assert (delivery.queue, delivery.priority, delivery.data) == ("images", 3, {"width": 1})
    assert later.run_at - later.created_at > timedelta(minutes=59)


def test_an_argument_may_be_called_as_an_option_is() -> None:
    app, hooks = make_app()
    ran: list[Any] = []

    @hooks.job(name="move")
    def move(queue: str, **more: Any) -> None:
        ran.append((queue, more))

    with app.app_context():
        move.enqueue("left", more=1, data=2)
        move.dispatch({"queue": "right"})
    assert ran == [("left", {"more": 1, "data": 2}), ("right", {})]


def test_a_decorated_function_has_the_arguments_of_the_one_inside() -> None:
    app, hooks = make_app()
    ran: list[int] = []

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return call

    @hooks.job(name="wrapped")
    @decorate
    def double(n: int) -> None:
        ran.append(2 * n)

    with app.app_context():
        double.enqueue(4)
        with pytest.raises(TypeError, match="unexpected keyword argument 'm'"):
            double.enqueue(1, m=2)
    assert ran == [8]


def test_a_decorator_may_supply_an_argument_or_take_one_for_itself() -> None:
    app, hooks = make_app()
    ran: list[Any] = []

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def call(*, tenant: str, **kwargs: Any) -> Any:
            return function(f"session of {tenant}", **kwargs)

        return call

    @hooks.job(name="supplied")
    @decorate
    def export(session: str, *, number: int) -> None:
        ran.append((session, number))

    enqueue: Any = export.enqueue
    with app.app_context():
        enqueue(tenant="acme", number=1)
    assert ran == [("session of acme", 1)]


def test_positional_arguments_without_names_have_none_to_travel_by() -> None:
    app, hooks = make_app()

    @hooks.job(name="collect")
    def collect(first: int, *others: int) -> None: ...

    with app.app_context():
        assert collect.enqueue(1)
        with pytest.raises(TypeError, match=r"'collect': too many positional .* by name only"):
            collect.enqueue(1, 2)


def test_a_function_that_takes_nothing_by_name_is_no_job() -> None:
    def double(n: int, /) -> int:
        return 2 * n

    with pytest.raises(ConfigError, match="'double': the argument 'n' is positional only"):
        AsyncHooks().job(name="double")(double)


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
    with pytest.raises(ConfigError, match=r"'max_attempt' is .* Did you mean 'max_attempts'\?"):
        AsyncHooks().job(max_attempt=3)(named)


@pytest.mark.parametrize("method", ["backoff", "unique_key", "ref", "finish", "discarded"])
def test_an_option_that_is_called_is_a_function(method: str) -> None:
    with pytest.raises(ConfigError, match=f"expected '{method}' to be a function, got: 3"):
        AsyncHooks().job(**{method: 3})(named)


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
