"""Texts of what the app's own code made: its exceptions and objects may do anything then."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import blinker
import pytest

from async_hooks import AsyncTask, ConfigError, DataError
from async_hooks.log import one_line
from async_hooks.signals import task_started
from async_hooks.snapshot import snapshot
from async_hooks.texts import error_text, log_exception, repr_of, text_of
from async_hooks.validation import checked, count
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts
from tests.support.waiting import wait_until


class Odd(Exception):
    """Has neither text nor truth, and is equal to nothing."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("not now")

    __str__ = __repr__ = __bool__ = __eq__ = __hash__ = _refuse


class Text(str):
    """Text that breaks what is made of it."""

    __slots__ = ()

    def __str__(self) -> Any:
        return self

    def __format__(self, spec: str) -> str:
        raise RuntimeError("not now")


def saying(call: Callable[[], Any]) -> Exception:
    """Return an exception whose text is what ``call`` returns."""
    kind: type[Exception] = type("ApiError", (Exception,), {"__str__": lambda self: call()})
    return kind()


def deep(levels: int = 100_000) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: "no stock", "no stock"),
        (lambda: 503, "<cannot be shown>"),
        (lambda: 1 / 0, "<cannot be shown>"),
        (lambda: sys.exit("never"), "<cannot be shown>"),
        (lambda: repr(deep()), "<cannot be shown>"),
        (lambda: Text("a subclass"), "a subclass"),
        (lambda: "half \ud800", "half \\ud800"),
        (lambda: "x" * 10**6, "x" * 1990),
    ],
)
def test_an_exception_has_a_text_whatever_it_does(call: Callable[[], Any], text: str) -> None:
    assert error_text(saying(call)) == f"ApiError: {text}"


def test_the_name_of_a_class_may_be_no_text_either() -> None:
    class Nameless(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise RuntimeError("not now")

    error = Nameless("Nameless", (Exception,), {})("lost")
    assert error_text(error) == "<cannot be shown>: lost"


def test_an_object_has_a_text_whatever_it_does() -> None:
    assert (text_of(Odd()), repr_of(Odd()), one_line(Odd())) == ("<cannot be shown>",) * 3
    assert (text_of(3), repr_of("a")) == ("3", "'a'")


def test_ctrl_c_is_still_ctrl_c() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        error_text(saying(interrupt))


def test_an_exception_that_has_no_traceback_to_show_is_logged_in_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("async_hooks")
    try:
        raise Odd
    except Odd as odd:
        log_exception(logger, odd, "Task %s failed.", "mail", extra={"task": "mail"})
    [record] = caplog.records[-1:]
    assert record.getMessage() == "Task mail failed. Odd: <cannot be shown>"
    assert vars(record)["task"] == "mail"


def test_a_message_shows_a_wrong_value_as_far_as_it_can() -> None:
    with pytest.raises(ConfigError, match="'KEY' to be a positive whole number, got: <cannot be"):
        checked(count, Odd(), "KEY")
    with pytest.raises(ConfigError, match=r"expected 'KEY' .*, got: 'x{1999}$"):
        checked(count, "x" * 10**6, "KEY")
    key: Any = type("Key", (), {"__repr__": lambda self: 1 / 0})()
    with pytest.raises(DataError, match="data has the key <cannot be shown>; JSON keys are"):
        snapshot({key: 1}, max_bytes=100)


@pytest.mark.parametrize("transport", ["in_process", "eager"])
def test_an_odd_exception_is_a_failure_like_any_other(
    action: str, transport: str, facts: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT=transport)
    odd = Odd()

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise odd

    task = make_task(hooks, action, run_action=run_action, name="odd")
    with app.app_context():
        if transport == "eager":
            with pytest.raises(Odd):
                task.dispatch({})
        else:
            task.dispatch({})
    [said] = facts.wait_for("failed")
    assert said["exception"] is odd
    wait_until(lambda: "failed: Odd: <cannot be shown>" in caplog.text)


def test_an_odd_exception_of_prepare_data_never_breaks_the_request(
    action: str, facts: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()

    def prepare_data(self: AsyncTask, sender: Any, /) -> dict[str, Any]:
        raise Odd

    make_task(hooks, action, prepare_data=prepare_data)
    app.add_url_rule("/", view_func=lambda: str(len(blinker.signal(action).send())))
    assert app.test_client().get("/").text == "1"
    assert len(facts.of("failed")) == 1
    assert "could not be launched. Odd: <cannot be shown>" in caplog.text


def test_an_odd_exception_of_a_listener_is_ignored_as_any_other(
    action: str, facts: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action, run_action=lambda self, data: None)

    def listen(sender: Any, /, **_: Any) -> None:
        raise Odd

    with task_started.connected_to(listen, app), app.app_context():
        task.dispatch({})
    assert len(facts.of("succeeded")) == 1
    assert "A listener of task_started raised; the task goes on. Odd:" in caplog.text


def test_a_sender_survives_a_transport_that_raises_an_odd_exception(
    action: str, facts: Facts
) -> None:
    class Courier:
        def send(self, envelope: Any) -> Any:
            raise Odd

    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT=Courier(), ASYNC_HOOKS_CONCURRENCY=1)
    task = make_task(hooks, action)
    with app.app_context():
        for _ in range(3):
            task.dispatch({})
    for said in facts.wait_for("failed", 3):
        assert str(said["exception"]) == "Odd: <cannot be shown>"
