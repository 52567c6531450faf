from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import blinker
import pytest
from flask import Flask, Response, current_app, request, send_file, stream_with_context
from werkzeug.test import create_environ

from async_hooks import AsyncHooks
from async_hooks.envelope import Envelope
from async_hooks.host.timer import Call, call_later
from async_hooks.launch import after_response as module
from async_hooks.launch.after_response import AfterResponse, after_response
from async_hooks.state import state_of
from async_hooks.wsgi import close
from tests.support.apps import make_app, make_task
from tests.support.waiting import BOUND, wait_until


def site(action: str, **config: Any) -> tuple[Flask, list[Envelope]]:
    """Return an app whose views send ``action``, and the list of what is handed over."""
    app, hooks = make_app(**config)
    make_task(hooks, action)
    testing = app.extensions["testing"] = hooks.testing(app)  # Kept, or it would end at once.
    recorder = testing.__enter__()

    def send() -> None:
        blinker.signal(action).send(app)

    def streaming() -> Response:
        send()
        return Response(iter(["a", "b"]))

    def late() -> Response:
        def body() -> Iterator[str]:
            yield "a"
            send()
            yield "b"

        return Response(stream_with_context(body()))

    def raising() -> str:
        send()
        raise ValueError("the view broke")

    def file() -> Response:
        send()
        return send_file(io.BytesIO(b"file"), mimetype="text/plain")

    def path() -> Response:
        send()
        return send_file(Path(__file__))

    def unmodified() -> Response:
        send()
        return Response(status=304)

    def plain() -> str:
        send()
        return "ok"

    for view in (streaming, late, raising, file, path, unmodified, plain):
        app.add_url_rule(f"/{view.__name__}", view_func=view)
    return app, recorder.envelopes


class Server:
    """What a WSGI server does with an app, step by step."""

    def __init__(self, app: Flask, path: str, method: str = "GET") -> None:
        environ = create_environ(path, method=method)
        environ["SERVER_SOFTWARE"] = "a test of servers"
        self.status = ""
        self.body: Iterable[bytes] = app(environ, self._start)
        self.iterator = iter(self.body)

    def _start(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self.status = status
        return None

    def finish(self) -> bytes:
        return b"".join(self.iterator)

    def close(self) -> None:
        close(self.body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/plain", "/streaming", "/file", "/path", "/unmodified"])
def test_launches_are_handed_over_when_the_server_closes_the_body(
    action: str, path: str, method: str
) -> None:
    app, handed = site(action)
    server = Server(app, path, method)
    server.finish()
    assert handed == []
    server.close()
    assert len(handed) == 1
    server.close()
    assert len(handed) == 1


def test_launches_wait_for_the_end_of_a_body_that_a_middleware_passes_on(action: str) -> None:
    app, handed = site(action)
    inner = app.wsgi_app

    def passes_on(environ: Any, start_response: Any) -> Iterator[bytes]:
        for chunk in inner(environ, start_response):
            assert handed == []
            yield chunk

    app.wsgi_app = passes_on  # type: ignore[method-assign]
    server = Server(app, "/streaming")
    server.finish()
    server.close()
    assert len(handed) == 1


def test_a_static_file_is_served_as_ever(action: str, tmp_path: Path) -> None:
    app, _ = site(action)
    app.static_folder = str(tmp_path)
    (tmp_path / "a.txt").write_text("static")
    server = Server(app, "/static/a.txt")
    assert server.finish() == b"static"
    server.close()


def test_a_launch_from_a_request_for_a_static_file(action: str, tmp_path: Path) -> None:
    app, handed = site(action)
    app.static_folder = str(tmp_path)
    (tmp_path / "a.txt").write_text("static")
    app.before_request(lambda: blinker.signal(action).send(app) and None)
    server = Server(app, "/static/a.txt")
    assert server.finish() == b"static"
    assert handed == []
    server.close()
    assert len(handed) == 1


def test_a_launch_while_streaming_goes_at_once(action: str) -> None:
    app, handed = site(action)
    server = Server(app, "/late")
    assert next(server.iterator) == b"a"
    assert handed == []
    assert next(server.iterator) == b"b"
    assert len(handed) == 1
    server.close()
    assert len(handed) == 1


def test_a_raising_view_hands_over(action: str) -> None:
    app, handed = site(action)
    server = Server(app, "/raising")
    server.finish()
    server.close()
    assert server.status.startswith("500")
    assert len(handed) == 1


def test_a_view_that_raises_through_hands_over(action: str) -> None:
    app, handed = site(action, PROPAGATE_EXCEPTIONS=True)
    with pytest.raises(ValueError, match="the view broke"):
        Server(app, "/raising")
    assert len(handed) == 1


def test_a_replaced_response_hands_over(action: str) -> None:
    app, handed = site(action)
    app.after_request(lambda response: Response("another"))
    server = Server(app, "/plain")
    assert server.finish() == b"another"
    server.close()
    assert len(handed) == 1


def test_a_launch_at_teardown_is_handed_over(action: str) -> None:
    app, handed = site(action)

    @app.teardown_request
    def launch(error: BaseException | None) -> None:
        blinker.signal(action).send(app)

    server = Server(app, "/unknown")
    server.finish()
    server.close()
    assert len(handed) == 1


@pytest.mark.parametrize("path", ["/plain", "/streaming", "/file", "/path", "/raising"])
def test_the_test_client_hands_over_without_close(action: str, path: str) -> None:
    app, handed = site(action)
    response = app.test_client().get(path)
    assert len(handed) == 1
    response.close()
    assert len(handed) == 1


def test_the_test_client_hands_over_in_a_with_block(action: str) -> None:
    app, handed = site(action)
    with app.test_client() as client:
        client.get("/plain")
        assert len(handed) == 1
        assert request.path == "/plain"
    assert len(handed) == 1


def test_a_test_request_context_hands_over_at_its_end(action: str) -> None:
    app, handed = site(action)
    with app.test_request_context():
        blinker.signal(action).send(app)
        assert handed == []
    assert len(handed) == 1


def test_outside_a_request_it_goes_at_once(action: str) -> None:
    app, handed = site(action)
    with app.app_context():
        blinker.signal(action).send(app)
        assert len(handed) == 1


def test_another_apps_context_inside_a_request_goes_its_own_way(action: str) -> None:
    outer, _ = make_app()
    app, handed = site(action)
    with outer.test_request_context(), app.app_context():
        blinker.signal(action).send(app)
        assert len(handed) == 1


def test_several_launches_go_in_the_order_of_priority(action: str) -> None:
    app, hooks = make_app()
    for name, priority in (("last", 20), ("first", -1), ("second", 10), ("third", 10)):
        make_task(hooks, action, name=name, priority=priority)
    with hooks.testing(app) as handed, app.test_request_context():
        sent = blinker.signal(action).send(app)
    names = [envelope.task for envelope in handed.envelopes]
    assert names[0] == "first"
    assert names[-1] == "last"
    assert {envelope.id for envelope in handed.envelopes} == {result for _, result in sent}


def test_two_launches_of_one_task_in_one_request_are_both_handed_over(action: str) -> None:
    app, hooks = make_app()
    task = make_task(hooks, action)
    with hooks.testing(app) as handed, app.test_request_context():
        task.dispatch({"lead": 1})
        task.dispatch({"lead": 2})
    assert [envelope.data["lead"] for envelope in handed.envelopes] == [1, 2]


def test_a_nested_request_has_launches_of_its_own(action: str) -> None:
    app, handed = site(action)

    def outer() -> str:
        blinker.signal(action).send(app)
        app.test_client().get("/plain")
        assert len(handed) == 1
        return "ok"

    app.add_url_rule("/outer", view_func=outer)
    app.test_client().get("/outer")
    assert len(handed) == 2


def test_the_body_is_wrapped_only_when_there_are_launches() -> None:
    body = [b"untouched"]
    environ = create_environ("/")
    handed = AfterResponse(lambda environ, start: body)
    assert handed(environ, lambda *a: lambda data: None) is body


def test_hand_over_happens_even_if_closing_the_body_raises(action: str) -> None:
    app, handed = site(action)

    class Broken(Response):
        def close(self) -> None:
            raise OSError("the file is gone")

    def view() -> Response:
        blinker.signal(action).send(app)
        return Broken("x")

    app.add_url_rule("/broken", view_func=view)
    server = Server(app, "/broken")
    server.finish()
    with pytest.raises(OSError, match="the file is gone"):
        server.close()
    assert len(handed) == 1


def test_a_middleware_that_closes_nothing_loses_nothing(action: str) -> None:
    app, handed = site(action)
    inner = app.wsgi_app
    app.wsgi_app = lambda environ, start: [b"".join(inner(environ, start))]  # type: ignore[assignment, method-assign]
    Server(app, "/plain").finish()
    assert len(handed) == 1


def test_any_call_can_wait_for_the_end_of_the_response() -> None:
    app, _ = make_app()
    made: list[str] = []
    with app.app_context():
        after_response(app, lambda: made.append("at once"))
    with app.test_request_context():
        after_response(app, lambda: made.append("last"), priority=1)
        for _ in range(2):
            after_response(app, made.clear)  # Equal calls are made once.
        after_response(app, lambda: made.append("first"))
        assert made == ["at once"]
    assert made == ["first", "last"]


def test_a_call_that_raises_keeps_no_other_from_being_made() -> None:
    app, _ = make_app()
    made: list[str] = []

    def broken() -> None:
        raise ValueError("broken")

    context = app.test_request_context()
    context.push()
    after_response(app, broken)
    after_response(app, lambda: made.append("second"))
    with pytest.raises(ValueError, match="broken"):
        context.pop()
    assert made == ["second"]


def test_what_a_later_teardown_function_puts_off_is_made_at_once() -> None:
    app = Flask("site")
    made: list[str] = []

    @app.teardown_request
    def late(error: BaseException | None) -> None:  # Flask calls the first one last.
        after_response(app, lambda: made.append("late"))

    app.config.update(SECRET_KEY="k" * 32, ASYNC_HOOKS_TRANSPORT="eager")
    AsyncHooks(app)
    with app.test_request_context():
        pass
    assert made == ["late"]


# -- a response that stays open


@pytest.fixture
def at_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return what lets the longest wait of all that is put off be over."""
    calls: set[Call] = set()

    def call_later(seconds: float, make: Callable[[], object]) -> Call:
        assert seconds == module.LONGEST_WAIT
        call = Call(seconds, make)
        calls.add(call)
        return call

    def make_all() -> None:
        due = [*calls]
        calls.clear()
        for call in due:
            call.make()
        for thread in threading.enumerate():
            if thread.name == "async_hooks-open-request":
                thread.join(BOUND)

    monkeypatch.setattr(module, "call_later", call_later)
    monkeypatch.setattr(module, "cancel", calls.discard)
    yield make_all
    assert calls == set(), "a closed request left something to the timer"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)


def test_a_stream_holds_nothing_back_for_longer_than_the_longest_wait(
    action: str, at_limit: Callable[[], None]
) -> None:
    app, handed = site(action)
    server = Server(app, "/streaming")
    assert next(server.iterator) == b"a"
    assert handed == []
    at_limit()
    assert len(handed) == 1
    server.finish()
    server.close()
    assert len(handed) == 1


@pytest.mark.usefixtures("short")
def test_the_timer_ends_the_wait(action: str) -> None:
    app, handed = site(action)
    servers = [Server(app, "/streaming") for _ in range(2)]
    wait_until(lambda: len(handed) == 2, "the hand-over")
    servers.append(Server(app, "/streaming"))
    wait_until(lambda: len(handed) == 3, "the hand-over")
    for server in servers:
        server.close()
    assert len(handed) == 3


@pytest.mark.usefixtures("short")
def test_what_takes_its_time_does_not_keep_the_timer() -> None:
    app, _ = make_app()
    begun, may_end, made = threading.Event(), threading.Event(), threading.Event()

    def view() -> Response:
        after_response(app, begun.set)
        after_response(app, lambda: may_end.wait(BOUND))
        return Response(iter(["a"]))

    app.add_url_rule("/", view_func=view)
    server = Server(app, "/")
    assert begun.wait(BOUND)
    call_later(0.0, made.set)
    assert made.wait(BOUND)
    may_end.set()
    server.close()


def test_where_no_thread_can_be_started_it_is_tried_again_later(
    action: str, at_limit: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, handed = site(action)
    server = Server(app, "/streaming")

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        at_limit()
    assert handed == []
    at_limit()
    assert len(handed) == 1
    server.close()


def test_a_launch_while_streaming_waits_no_longer_either(
    action: str, at_limit: Callable[[], None]
) -> None:
    app, handed = site(action)

    def view() -> Response:
        blinker.signal(action).send(app)

        def body() -> Iterator[str]:
            yield "a"
            blinker.signal(action).send(app)
            yield "b"

        return Response(stream_with_context(body()))

    app.add_url_rule("/twice", view_func=view)
    server = Server(app, "/twice")
    for number in (1, 2):
        next(server.iterator)
        at_limit()
        assert len(handed) == number
    server.close()


def test_while_the_view_runs_its_launches_wait_for_what_it_may_commit(
    action: str, at_limit: Callable[[], None]
) -> None:
    app, handed = site(action)

    def view() -> str:
        blinker.signal(action).send(app)
        at_limit()
        assert handed == []
        return "committed"

    app.add_url_rule("/slow", view_func=view)
    server = Server(app, "/slow")
    assert server.finish() == b"committed"
    server.close()
    assert len(handed) == 1


@pytest.mark.parametrize("known_by", ["rule", "environ"])
def test_in_the_view_of_a_websocket_the_wait_counts_from_the_launch(
    action: str, at_limit: Callable[[], None], known_by: str
) -> None:
    app, handed = site(action)
    seen = []

    def view() -> str:
        for _ in range(2):
            blinker.signal(action).send(app)
            before = len(handed)
            at_limit()
            seen.append((before, len(handed)))
        return ""

    app.add_url_rule("/socket", view_func=view, websocket=known_by == "rule")
    if known_by == "rule":
        headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
        environ = create_environ("/socket", headers=headers)
    else:
        environ = {**create_environ("/socket"), "wsgi.websocket": object()}
    with app.request_context(environ):
        app.dispatch_request()
    assert seen == [(0, 1), (1, 2)]


def test_a_closed_response_is_forgotten(action: str, at_limit: Callable[[], None]) -> None:
    app, _ = site(action)
    server = Server(app, "/plain")
    assert app in module._open[os.getpid()].values()
    server.close()
    assert app not in module._open[os.getpid()].values()


def test_a_stop_waits_for_no_response(action: str) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_FALLBACK=None)
    other, _ = make_app(ASYNC_HOOKS_TRANSPORT="in_process")
    ran: list[Flask] = []

    def run_action(task: Any, data: Any) -> None:
        ran.append(current_app._get_current_object())  # type: ignore[attr-defined]

    make_task(hooks, action, run_action=run_action)

    def streaming() -> Response:
        blinker.signal(action).send(app)
        return Response(iter(["a", "b"]))

    app.add_url_rule("/", view_func=streaming)
    server = Server(app, "/")
    memory: Any = state_of(other).memory
    memory.stop(20)
    assert ran == []
    memory = state_of(app).memory
    memory.stop(20)
    assert ran == [app]
    server.close()
    assert ran == [app]


def test_what_fails_is_logged_and_keeps_no_other_waiting(
    at_limit: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    app, _ = make_app()
    made: list[str] = []

    def view() -> Response:
        after_response(app, lambda: 1 / 0)
        after_response(app, lambda: made.append("second"))
        return Response(iter(["a"]))

    app.add_url_rule("/", view_func=view)
    server = Server(app, "/")
    at_limit()
    assert made == ["second"]
    [record] = caplog.records
    assert "What a request put off until after its response failed" in record.getMessage()
    server.close()
