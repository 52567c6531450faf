"""Names, errors and replies with CR, LF and ANSI in them: each log line of ours stays one line.

A traceback has lines of its own, as Flask's has; the line that introduces it has not.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blinker
import pytest

from async_hooks import AsyncTask, Discard, Retry, log
from async_hooks.envelope import Envelope, new_id
from tests.attacks.attacking import URL, Target, listening, read_request
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts

EVIL = (
    "x\r\n2026-01-01 00:00:00 CRITICAL async_hooks: forged\n"
    "\x1b[2J\x1b[31mred\x9b31m\x07\x08\x00\x0b\x0c\x7f\x85\u2028\u2029end"
)
CONTROL = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029"}


@pytest.fixture(autouse=True)
def _released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no line be held back for what strangers did in an earlier test."""
    monkeypatch.setattr(log, "_strangers", type(log._strangers)())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """What the library logs during the test; each line of it is looked at in the end."""
    caplog.set_level(logging.DEBUG, "async_hooks")
    yield caplog.records
    ours = [record for record in caplog.get_records("call") if record.name == "async_hooks"]
    assert ours
    for record in ours:
        assert not CONTROL & set(record.getMessage()), record.getMessage()


Lines = list[logging.LogRecord]


@pytest.mark.parametrize("error", [ValueError, Discard, Retry])
def test_an_error_of_a_receiver(lines: Lines, action: str, error: type[Exception]) -> None:
    app, hooks = make_app()
    make_task(hooks, action)

    @hooks.receiver(action, name="fails")
    def fails(sender: Any) -> None:
        raise error(EVIL)

    with app.app_context(), pytest.raises(error):
        blinker.signal(action).send(app)


@pytest.mark.parametrize("error", [ValueError, Discard, Retry, SystemError])
def test_an_error_that_came_back_in_a_verdict(
    lines: Lines, action: str, facts: Facts, error: type[Exception]
) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")

    def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
        raise error(EVIL)

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        task.dispatch({})
    facts.wait_for("failed")
    if error is Discard:
        facts.wait_for("discarded")


def test_an_error_of_prepare_data(lines: Lines, action: str) -> None:
    app, hooks = make_app()

    def prepare_data(task: AsyncTask, sender: Any, /, **kwargs: Any) -> dict[str, Any]:
        raise ValueError(EVIL)

    make_task(hooks, action, prepare_data=prepare_data)
    with app.app_context():
        blinker.signal(action).send(app)


def test_data_that_cannot_travel(lines: Lines, action: str) -> None:
    app, hooks = make_app()
    make_task(hooks, action)
    with app.app_context():
        blinker.signal(action).send(app, lead={EVIL: object()})


def test_a_name_of_a_task(lines: Lines, action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action, name=EVIL, run_action=lambda task, data: 1 / 0)
    with app.app_context(), pytest.raises(ZeroDivisionError):
        task.dispatch({})


def test_a_name_of_a_receiver(lines: Lines, action: str, facts: Facts) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")
    make_task(hooks, action)
    for name in (EVIL, EVIL * 2):
        hooks.receiver(action, name=name)(lambda sender: 1 / 0)
    with app.app_context():
        blinker.signal(action).send(app)
    facts.wait_for("failed", 2)


def test_a_name_of_an_action_that_nobody_hears(lines: Lines, action: str) -> None:
    app, hooks = make_app()
    make_task(hooks, action + EVIL)
    with app.app_context():
        blinker.signal(action + EVIL).send(app)


def test_an_action_that_is_sent_outside_of_any_app(lines: Lines, action: str) -> None:
    _, hooks = make_app()
    make_task(hooks, action + EVIL, name=action + EVIL)
    blinker.signal(action + EVIL).send(None)
    del hooks


@pytest.mark.parametrize("part", ["id", "task", "receiver", "parent_id"])
def test_a_part_of_a_genuine_token(lines: Lines, part: Any) -> None:
    target = Target()
    make_task(target.hooks, "attack", name="fails", run_action=lambda task, data: 1 / 0)
    make_task(target.hooks, "attack", name="sends")
    task = "sends" if part == "receiver" else "fails"
    genuine = Envelope(id=new_id(), task=task, body="{}")._replace(**dict[str, Any]({part: EVIL}))
    for age in (0, 1000):
        target.post(target.token(genuine, age=age))
    token = target.token(genuine, age=1)
    for _ in range(2):
        target.post(token)


def test_a_strangers_request(lines: Lines) -> None:
    target = Target()
    target.refuses(b"x", 405, method=EVIL)
    target.refuses(b"x", 400, environ_overrides={"CONTENT_TYPE": EVIL})
    target.refuses(b"x", 400, environ_overrides={"CONTENT_LENGTH": EVIL})
    target.refuses(EVIL.encode(), 401)
    target.refuses(b"x", 413, environ_overrides={"CONTENT_LENGTH": "9" * 15})


def test_many_strangers_do_not_fill_the_log(lines: Lines) -> None:
    target = Target()
    for _ in range(1000):
        target.post(b"no token")
    assert len(lines) < 20


def test_another_audience(lines: Lines) -> None:
    named = EVIL.replace("\0", "")  # Which no name may hold.
    Target().refuses(Target(ASYNC_HOOKS_AUDIENCE=named).token(), 401)


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 302 x\r\nLocation: http://x/\x1b[31m{EVIL[-5:]}\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 \x1b[31m\r\nContent-Length: 0\r\n\r\n",
        "\x1b[31m\r\n\r\n",
        "HTTP/1.1 204 x\r\nAsync-Hooks-Verdict: \x1b[31m\x07\r\n\r\n",
    ],
)
def test_a_reply(lines: Lines, action: str, facts: Facts, answer: str) -> None:
    def reply(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer.encode("utf-8"))

    with listening(reply) as listener:
        app, hooks = make_app(
            ASYNC_HOOKS_TRANSPORT="loopback",
            ASYNC_HOOKS_URL=listener.url,
            ASYNC_HOOKS_FALLBACK=None,
        )
        task = make_task(hooks, action)
        with app.app_context():
            task.dispatch({})
        facts.wait_for("failed")


def test_a_transport_of_the_users_own(lines: Lines, action: str, facts: Facts) -> None:
    class Fails:
        def send(self, envelope: Envelope) -> None:
            raise ValueError(EVIL)

    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT=Fails(), ASYNC_HOOKS_FALLBACK=None)
    task = make_task(hooks, action)
    with app.app_context():
        task.dispatch({})
    facts.wait_for("failed")


def test_a_line_can_be_written_whatever_is_in_it(
    tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lone surrogate has no UTF-8: the handler would drop the line, and say so over many."""
    path = tmp_path / "log"
    handler = logging.FileHandler(path, encoding="utf-8")
    logger = logging.getLogger("async_hooks")
    logger.addHandler(handler)
    app, hooks = make_app()

    def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
        raise ValueError(f"No lead is called {data['name']}.")

    task = make_task(hooks, action, run_action=run_action)
    try:
        with app.app_context(), pytest.raises(ValueError, match="No lead"):
            task.dispatch({"name": "\ud800"})
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert "Logging error" not in capsys.readouterr().err
    assert "No lead is called" in path.read_text(encoding="utf-8")


def test_a_line_holds_neither_data_nor_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    target = Target()
    token = target.token(Envelope(id="one", task="t", body='{"card":"4242 4242"}'))
    for body in (token, token, token[:-1], token.replace(b"4242", b"4243")):
        target.post(body)
    assert URL not in caplog.text
    assert "424" not in caplog.text
    assert token.rpartition(b".")[2].decode() not in caplog.text
