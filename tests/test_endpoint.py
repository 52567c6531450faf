from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any

import flask
import pytest
from flask import Flask
from flask_wtf.csrf import CSRFProtect
from werkzeug.test import TestResponse

from async_hooks import AsyncHooks, AsyncTask, Discard, Retry, log
from async_hooks.endpoint.endpoint import _Slots
from async_hooks.envelope import Envelope
from async_hooks.signing import CONTENT_TYPE, VERDICT_HEADER
from async_hooks.state import state_of
from async_hooks.verdict import Outcome
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts

URL = "/async-hooks/run"


def sign(app: Flask, envelope: Envelope, age: float = 0) -> bytes:
    return state_of(app).signing.sign(envelope, now=time.time() - age)


def post(app: Flask, token: bytes, **kwargs: Any) -> TestResponse:
    kwargs = {"content_type": CONTENT_TYPE, "data": token, **kwargs}
    return app.test_client().post(URL, **kwargs)


def outcome_of(app: Flask, token: bytes, response: TestResponse) -> tuple[Outcome, str | None]:
    verdict = state_of(app).signing.verify_verdict(token, response.headers[VERDICT_HEADER])
    assert verdict is not None
    return verdict.outcome, verdict.error


def running(**config: Any) -> tuple[Flask, AsyncHooks, list[Any]]:
    """Return an app with a task ``t`` that notes what reaches it, and the notes."""
    app, hooks = make_app(**config)
    ran: list[Any] = []
    make_task(hooks, "endpoint", name="t", run_action=lambda self, data: ran.append(data))
    app.before_request(lambda: ran.append("before_request"))
    return app, hooks, ran


T = Envelope(id="1" * 32, task="t", body='{"lead":7}')


def test_a_token_runs_its_task() -> None:
    app, _, ran = running()
    token = sign(app, T)
    response = post(app, token)
    assert (response.status_code, response.data) == (204, b"")
    assert outcome_of(app, token, response) == (Outcome.COMPLETED, None)
    assert ran == ["before_request", {"lead": 7}]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_405(method: str, facts: Facts) -> None:
    app, _, ran = running()
    token = sign(app, T)
    response = app.test_client().open(URL, method=method, data=token, content_type=CONTENT_TYPE)
    assert (response.status_code, response.headers["Allow"], ran) == (405, "POST", [])
    assert len(facts.of("rejected")) == 1


@pytest.mark.parametrize(
    ("kwargs", "status"),
    [
        ({"data": b"", "environ_overrides": {"CONTENT_LENGTH": "0"}}, 401),
        ({"environ_overrides": {"CONTENT_LENGTH": ""}}, 400),
        ({"data": b"nonsense"}, 401),
        ({"data": b"{}.x"}, 401),
        ({"data": b"\xff\xfe\x00" * 9}, 401),
        ({"data": b"[" * 100_000}, 401),
        ({"content_type": "application/json"}, 400),
        ({"content_type": ""}, 400),
        ({"environ_overrides": {"CONTENT_LENGTH": "-1"}}, 400),
        ({"environ_overrides": {"CONTENT_LENGTH": "1e3"}}, 400),
        ({"environ_overrides": {"CONTENT_LENGTH": "9" * 5000}}, 400),
        ({"environ_overrides": {"CONTENT_LENGTH": "99999"}}, 400),
        ({"data": b"x" * (2**20 + 64 * 1024 + 1)}, 413),
    ],
)
def test_a_stranger_learns_nothing_and_reaches_nothing(
    kwargs: dict[str, Any], status: int, facts: Facts
) -> None:
    app, _, ran = running()
    response = post(app, sign(app, T), **kwargs)
    assert (response.status_code, response.data, ran) == (status, b"", [])
    assert VERDICT_HEADER not in response.headers
    assert set(dict(response.headers)) <= {"Content-Length", "Content-Type"}
    [said] = facts.of("rejected")
    assert said["envelope"] is None
    assert said["reason"]


def test_an_expired_token_is_410(facts: Facts) -> None:
    app, _, ran = running()
    token = sign(app, T, age=301)
    response = post(app, token)
    assert response.status_code == 410
    assert outcome_of(app, token, response)[0] is Outcome.EXPIRED
    assert ran == []
    assert "301 seconds old" in facts.of("rejected")[0]["reason"]


def test_a_replayed_token_is_409(facts: Facts) -> None:
    app, _, ran = running()
    token = sign(app, T)
    assert post(app, token).status_code == 204
    response = post(app, token)
    assert response.status_code == 409
    assert outcome_of(app, token, response)[0] is Outcome.REPLAYED
    assert ran.count({"lead": 7}) == 1
    assert facts.of("rejected")[0]["envelope"] == T


def test_fifty_replays_at_once_run_once() -> None:
    app, _, ran = running(ASYNC_HOOKS_CONCURRENCY=50)
    token = sign(app, T)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(post(app, token).status_code))
        for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [204] + [409] * 49
    assert ran.count({"lead": 7}) == 1


def test_an_unknown_task_is_404_with_a_verdict() -> None:
    app, _, _ = running()
    token = sign(app, Envelope(id="2", task="os.system", body="{}"))
    response = post(app, token)
    outcome, error = outcome_of(app, token, response)
    assert (response.status_code, outcome) == (404, Outcome.UNKNOWN)
    assert "No task is registered under the name 'os.system'" in str(error)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("x"), (Outcome.FAILED, "ValueError: x")),
        (Discard("x"), (Outcome.DISCARDED, "Discard: x")),
        (Retry("x", after=5), (Outcome.RETRY, "Retry: x")),
    ],
)
def test_a_failure_is_500_with_a_verdict(
    error: Exception, outcome: tuple[Outcome, str], action: str
) -> None:
    app, hooks = make_app()

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise error

    make_task(hooks, action, name="t", run_action=run_action)
    token = sign(app, T)
    response = post(app, token)
    assert (response.status_code, response.data) == (500, b"")
    assert outcome_of(app, token, response) == outcome


@pytest.mark.parametrize("config", [{"TESTING": True}, {"DEBUG": True}])
def test_where_flask_lets_exceptions_out_the_verdict_comes_all_the_same(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app(**config)
    app.debug = config.get("DEBUG", False)
    make_task(hooks, "endpoint", name="t", run_action=lambda self, data: 1 / 0)
    assert post(app, sign(app, T)).status_code == 500
    assert any(r.exc_info and "fresh request" in r.getMessage() for r in caplog.records)


def test_beyond_the_concurrency_cap_it_is_503_and_not_consumed() -> None:
    app, hooks = make_app(ASYNC_HOOKS_CONCURRENCY=1)
    started, go_on = threading.Event(), threading.Event()

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        started.set()
        assert go_on.wait(20)

    make_task(hooks, "endpoint", name="t", run_action=run_action)
    first = threading.Thread(target=post, args=(app, sign(app, T)))
    first.start()
    assert started.wait(20)
    token = sign(app, Envelope(id="2", task="t", body="{}"))
    response = post(app, token)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert outcome_of(app, token, response)[0] is Outcome.BUSY
    go_on.set()
    first.join()
    assert post(app, token).status_code == 204


def test_a_stranger_is_answered_before_any_before_request() -> None:
    app, _, ran = running()
    post(app, b"nonsense")
    assert ran == []


def test_csrf_protection_does_not_stop_it() -> None:
    app, _, ran = running()
    CSRFProtect(app)
    app.add_url_rule("/form", view_func=lambda: "ok", methods=["POST"])
    assert app.test_client().post("/form").status_code == 400
    assert post(app, sign(app, T)).status_code == 204
    assert {"lead": 7} in ran


def test_it_works_under_trusted_hosts() -> None:
    app, _, ran = running(TRUSTED_HOSTS=["shop.example"])
    from async_hooks.envelope import Origin

    envelope = Envelope(id="1", task="t", body="{}", origin=Origin("https", "shop.example", ""))
    assert post(app, sign(app, envelope)).status_code == 204
    assert {} in ran


def test_it_is_mounted_under_the_prefix() -> None:
    app, _, _ = running(ASYNC_HOOKS_URL_PREFIX="/_internal")
    response = app.test_client().post(
        "/_internal/run", data=sign(app, T), content_type=CONTENT_TYPE
    )
    assert response.status_code == 204
    assert post(app, sign(app, T)).status_code == 404


def test_strangers_cannot_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, facts: Facts
) -> None:
    brake = log._Brake()
    monkeypatch.setattr(log, "_strangers", brake)
    app, _, _ = running()
    for _ in range(500):
        app.test_client().get(URL)
    assert len(facts.of("rejected")) == 500
    assert len(caplog.records) == 10
    brake._since -= 61
    app.test_client().get(URL)
    assert "(490 more were refused since the last such line.)" in caplog.text


def test_a_line_about_a_task_has_its_ids_on_the_record(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action, name="mail")
    hooks.receiver(action)(lambda sender: None)
    with caplog.at_level(logging.INFO, logger="async_hooks"), app.app_context():
        envelope_id = task.dispatch({})
    [record] = caplog.records
    assert record.getMessage() == f"Task 'mail' (envelope {envelope_id}, attempt 1) succeeded."
    ids = {key: vars(record)[key] for key in ("delivery", "task", "receiver", "attempt")}
    assert ids == {"delivery": envelope_id, "task": "mail", "receiver": None, "attempt": 1}


def test_a_refusal_is_one_log_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_strangers", log._Brake())
    app, _, _ = running()
    app.test_client().open(URL, method="PO\rST")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "\r" not in record.getMessage()


def test_the_session_of_a_run_sets_no_cookie() -> None:
    app, hooks = make_app()

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        flask.session["seen"] = True

    make_task(hooks, "endpoint", name="t", run_action=run_action)
    assert "Set-Cookie" not in post(app, sign(app, T)).headers


def test_every_refused_post_is_told(facts: Facts) -> None:
    app, _, _ = running()
    post(app, b"nonsense")
    post(app, sign(app, T, age=301))
    post(app, sign(app, Envelope(id="2", task="unknown", body="{}")))
    token = sign(app, T)
    post(app, token)
    post(app, token)
    reasons = [said["reason"] for said in facts.of("rejected")]
    words = ("signature", "seconds old", "No task is registered", "used before")
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_a_child_forked_during_a_run_has_all_its_slots() -> None:
    app, hooks, _ = running(ASYNC_HOOKS_CONCURRENCY=1)
    make_task(hooks, "endpoint", name="other")
    children: list[int] = []

    def fork() -> None:
        children.append(os.fork())
        if children == [0]:
            status = post(app, sign(app, T._replace(id="2" * 32, task="other"))).status_code
            os._exit(status == 204)

    app.before_request(lambda: None if children else fork())
    assert post(app, sign(app, T)).status_code == 204
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 1


def test_slots_are_taken_and_given_back_by_many_threads_at_once() -> None:
    slots, errors = _Slots(4), []
    before = sys.getswitchinterval()

    def take() -> None:
        try:
            for _ in range(20_000):
                if (slot := slots.take(30)) is not None:
                    slots.give_back(slot)
        except Exception as error:
            errors.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert [slots.take(30) is None for _ in range(5)] == [False] * 4 + [True]


def test_a_slot_is_lent_for_each_that_an_overdue_run_keeps() -> None:
    slots = _Slots(2)
    for _ in range(2):
        assert slots.take(-1) is not None  # Overdue at once.
    assert [slots.take(30) is None for _ in range(3)] == [False, False, True]
