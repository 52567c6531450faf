from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from async_hooks import AsyncTask, Discard, TransportError
from async_hooks.envelope import Envelope
from async_hooks.errors import AddressUnknown, Overdue, Unreachable
from async_hooks.relay.memory import Memory, MemoryRelay
from async_hooks.state import state_of
from async_hooks.verdict import Outcome, Verdict
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts
from tests.support.waiting import wait_until

DONE = Verdict(Outcome.COMPLETED)


class Scripted:
    """A transport that does what it is told, one step for each send, the last for ever."""

    def __init__(self, *steps: Verdict | Exception | Callable[[Envelope], Any]) -> None:
        self.steps = list(steps)
        self.sent: list[str] = []
        self._changed = threading.Condition()

    def send(self, envelope: Envelope) -> Verdict | None:
        with self._changed:
            self.sent.append(envelope.id)
            self._changed.notify_all()
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step(envelope) if callable(step) else step

    def wait_for(self, count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) >= count, timeout=20), self.sent
        return self.sent


@pytest.fixture
def relays() -> Iterator[list[MemoryRelay]]:
    made: list[MemoryRelay] = []
    yield made
    for relay in made:
        relay.stop(0)


def make_relay(
    made: list[MemoryRelay],
    transport: Scripted,
    fallback: Scripted | None = None,
    in_process: Scripted | None = None,
    max_age: float = 300.0,
    **config: Any,
) -> MemoryRelay:
    app, _ = make_app(**config)
    config_of_app = state_of(app).config
    relay = MemoryRelay(
        app,
        config_of_app,
        lambda: Memory(app, config_of_app.queue_size, max_age),
        transport,
        fallback=fallback,
        in_process=in_process or fallback or Scripted(DONE),
        cancel_unstarted=lambda: None,
    )
    made.append(relay)
    return relay


def envelope(number: int = 1) -> Envelope:
    return Envelope(id=str(number), task="t", body="{}")


def test_what_is_put_is_sent_by_another_thread(relays: list[MemoryRelay]) -> None:
    threads: list[int] = []

    def carry(envelope: Envelope) -> Verdict:
        threads.append(threading.get_ident())
        return DONE

    transport = Scripted(carry)
    relay = make_relay(relays, transport)
    relay.submit(envelope())
    transport.wait_for(1)
    relay.stop(20)
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize("outcome", [Outcome.BUSY, Outcome.EXPIRED])
def test_busy_and_expired_are_sent_again(
    relays: list[MemoryRelay], outcome: Outcome, facts: Facts
) -> None:
    transport = Scripted(Verdict(outcome), Verdict(outcome), DONE)
    make_relay(relays, transport).submit(envelope())
    assert transport.wait_for(3) == ["1", "1", "1"]
    assert facts.of("failed") == []


def test_busy_for_longer_than_a_token_lives_is_a_failure(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    transport = Scripted(Verdict(Outcome.BUSY, "too much to do"))
    make_relay(relays, transport, ASYNC_HOOKS_MAX_AGE=0.05).submit(envelope())
    [said] = facts.wait_for("failed")
    assert "too much to do" in str(said["exception"])


def test_what_never_left_runs_by_the_fallback(
    relays: list[MemoryRelay], facts: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    fallback = Scripted(DONE)
    relay = make_relay(relays, Scripted(Unreachable("refused")), fallback)
    relay.submit(envelope())
    assert fallback.wait_for(1) == ["1"]
    relay.stop(20)
    assert facts.of("failed") == []
    assert "Envelope 1 runs in this process instead: refused" in caplog.text


def test_an_unknown_address_is_warned_of_once(
    relays: list[MemoryRelay], caplog: pytest.LogCaptureFixture
) -> None:
    fallback = Scripted(DONE)
    relay = make_relay(relays, Scripted(AddressUnknown("'ASYNC_HOOKS_URL' is not set")), fallback)
    for number in range(5):
        relay.submit(envelope(number))
    fallback.wait_for(5)
    assert len([r for r in caplog.records if "ASYNC_HOOKS_URL" in r.getMessage()]) == 1


def test_what_may_have_arrived_is_not_run_again(relays: list[MemoryRelay], facts: Facts) -> None:
    fallback = Scripted(DONE)
    relay = make_relay(relays, Scripted(TransportError("reset")), fallback)
    relay.submit(envelope())
    [said] = facts.wait_for("failed")
    assert str(said["exception"]) == "reset"
    assert fallback.sent == []


def test_without_a_fallback_it_is_dropped_loudly(
    relays: list[MemoryRelay], facts: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    make_relay(relays, Scripted(Unreachable("refused"))).submit(envelope())
    facts.wait_for("failed")
    [record] = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.getMessage() == "Task 't' (envelope 1, attempt 1) was not delivered: refused"


def test_a_transport_that_raises_anything_else_ends_nothing(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    transport = Scripted(KeyError("oops"), DONE)
    relay = make_relay(relays, transport, ASYNC_HOOKS_CONCURRENCY=1)
    relay.submit(envelope(1))
    relay.submit(envelope(2))
    transport.wait_for(2)
    assert "KeyError" in str(facts.wait_for("failed")[0]["exception"])


def blocked() -> tuple[Scripted, threading.Event]:
    """Return a transport that holds every envelope until the event is set."""
    go_on = threading.Event()
    return Scripted(lambda envelope: go_on.wait(20) and DONE), go_on


def test_a_full_queue_is_run_by_the_fallback_in_the_callers_thread(
    relays: list[MemoryRelay], caplog: pytest.LogCaptureFixture
) -> None:
    transport, go_on = blocked()
    ran_in: list[int] = []

    def carry(envelope: Envelope) -> Verdict:
        ran_in.append(threading.get_ident())
        return DONE

    fallback = Scripted(carry)
    relay = make_relay(
        relays, transport, fallback, ASYNC_HOOKS_QUEUE_SIZE=2, ASYNC_HOOKS_CONCURRENCY=1
    )
    relay.submit(envelope(1))
    transport.wait_for(1)
    for number in (2, 3, 4):
        relay.submit(envelope(number))
    assert fallback.sent == ["4"]
    assert ran_in == [threading.get_ident()]
    assert "'ASYNC_HOOKS_QUEUE_SIZE' allows" in caplog.text
    go_on.set()
    assert transport.wait_for(3) == ["1", "2", "3"]


def test_a_full_queue_without_a_fallback_drops_loudly(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    transport, go_on = blocked()
    relay = make_relay(relays, transport, ASYNC_HOOKS_QUEUE_SIZE=1, ASYNC_HOOKS_CONCURRENCY=1)
    relay.submit(envelope(1))
    transport.wait_for(1)
    relay.submit(envelope(2))
    relay.submit(envelope(3))
    [said] = facts.of("failed")
    assert said["envelope"].id == "3"
    assert "ASYNC_HOOKS_QUEUE_SIZE" in str(said["exception"])
    go_on.set()
    transport.wait_for(2)


def test_a_stop_runs_what_waits_in_process(relays: list[MemoryRelay], facts: Facts) -> None:
    transport, go_on = blocked()
    in_process = Scripted(DONE)
    relay = make_relay(relays, transport, None, in_process, ASYNC_HOOKS_CONCURRENCY=1)
    for number in (1, 2, 3):
        relay.submit(envelope(number))
    transport.wait_for(1)
    stopping = threading.Thread(target=relay.stop, args=(20,))
    stopping.start()
    go_on.set()
    stopping.join()
    assert transport.sent == ["1"]
    assert in_process.sent == ["2", "3"]
    assert facts.of("failed") == []


def test_what_is_put_after_a_stop_runs_at_once(relays: list[MemoryRelay]) -> None:
    transport, in_process = Scripted(DONE), Scripted(DONE)
    relay = make_relay(relays, transport, None, in_process)
    relay.submit(envelope(1))
    transport.wait_for(1)
    relay.stop(20)
    relay.submit(envelope(2))
    assert in_process.sent == ["2"]


def test_what_a_stop_cannot_wait_for_is_reported(relays: list[MemoryRelay], facts: Facts) -> None:
    transport, go_on = blocked()
    relay = make_relay(relays, transport, ASYNC_HOOKS_CONCURRENCY=1)
    relay.submit(envelope(1))
    transport.wait_for(1)
    relay.submit(envelope(2))
    relay.stop(0)
    reported = {said["envelope"].id: str(said["exception"]) for said in facts.of("failed")}
    go_on.set()
    assert "still waiting" in reported["2"]
    assert "still on its way" in reported["1"]


def test_a_stop_ends_every_thread_also_when_it_comes_twice(relays: list[MemoryRelay]) -> None:
    transport = Scripted(DONE)
    relay = make_relay(relays, transport, ASYNC_HOOKS_CONCURRENCY=4)
    relay.submit(envelope())
    transport.wait_for(1)
    threads = list(relay._pool[os.getpid()].threads)
    for _ in range(2):
        relay.stop(20)
        assert [thread.is_alive() for thread in threads] == [False] * 4


def test_a_stop_of_an_idle_relay_takes_no_time(relays: list[MemoryRelay]) -> None:
    make_relay(relays, Scripted(DONE)).stop(1000)


def test_a_forked_child_sends_for_itself_and_not_what_its_parent_has(
    relays: list[MemoryRelay],
) -> None:
    transport, go_on = blocked()
    relay = make_relay(relays, transport, ASYNC_HOOKS_CONCURRENCY=1)
    relay.submit(envelope(1))
    relay.submit(envelope(2))
    transport.wait_for(1)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # The child: whatever happens, it must not return into pytest.
        try:
            transport.steps[:] = [lambda sent: os.write(writing, f"{sent.id} ".encode()) and DONE]
            relay.submit(envelope(3))
            transport.wait_for(2)
            relay.stop(20)
            os.write(writing, b"end")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "3 end"
    os.waitpid(pid, 0)
    go_on.set()
    assert transport.wait_for(2) == ["1", "2"]


def test_an_in_process_run_sees_nothing_of_its_starter(action: str, facts: Facts) -> None:
    import flask

    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")
    seen: list[Any] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        seen.append((flask.g.get("theirs"), flask.request.method, dict(flask.request.cookies)))

    task = make_task(hooks, action, run_action=run_action)

    def view() -> str:
        flask.g.theirs = 1
        return task.dispatch({})

    app.add_url_rule("/", view_func=view)
    app.test_client().get("/")
    facts.wait_for("succeeded")
    assert seen == [(None, "POST", {})]


def test_an_object_with_send_is_a_transport(action: str) -> None:
    transport = Scripted(lambda envelope: None)
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT=transport)
    task = make_task(hooks, action)
    with app.app_context():
        envelope_id = task.dispatch({})
    assert transport.wait_for(1) == [envelope_id]
    relay: Any = state_of(app).memory
    relay.stop(20)


def test_a_listener_of_a_sender_side_failure_has_an_app_context(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    import flask

    from async_hooks.signals import task_failed

    seen: list[Flask] = []

    def listen(sender: Flask, /, **kwargs: Any) -> None:
        seen.append(flask.current_app._get_current_object())  # type: ignore[attr-defined]

    relay = make_relay(relays, Scripted(TransportError("reset")))
    with task_failed.connected_to(listen):
        relay.submit(envelope())
        facts.wait_for("failed")
        relay.stop(20)
    assert len(seen) == 1


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), GeneratorExit()])
def test_a_task_that_raises_more_than_an_exception_ends_no_thread(
    action: str, facts: Facts, error: BaseException
) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise error

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        for _ in range(5):
            task.dispatch({})
    assert {type(said["exception"]) for said in facts.wait_for("failed", 5)} == {type(error)}


def test_a_middleware_that_raises_ends_no_thread(action: str, facts: Facts) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="loopback")

    def broken(environ: Any, start_response: Any) -> Any:
        raise KeyError("no such tenant")

    app.wsgi_app = broken  # type: ignore[method-assign]
    task = make_task(hooks, action)
    with app.app_context():
        for _ in range(5):
            task.dispatch({})
    for said in facts.wait_for("failed", 5):
        assert "KeyError" in str(said["exception"])


def test_a_teardown_that_raises_ends_no_thread(action: str, facts: Facts) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise Discard("no such lead")

    @app.teardown_appcontext
    def close_database(error: BaseException | None) -> None:
        raise OSError("the database is gone")

    task = make_task(hooks, action, run_action=run_action)
    for _ in range(5):
        with pytest.raises(OSError, match="the database is gone"), app.app_context():
            task.dispatch({})
    assert len(facts.wait_for("discarded", 5)) == 5


def test_where_no_thread_can_be_started_the_fallback_runs(
    relays: list[MemoryRelay], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    transport, fallback = Scripted(DONE), Scripted(DONE)
    relay = make_relay(relays, transport, fallback)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        relay.submit(envelope(1))
    assert fallback.sent == ["1"]
    assert "No thread could be started" in caplog.text
    relay.submit(envelope(2))
    assert transport.wait_for(1) == ["2"]


def test_what_a_stop_overtakes_is_run_by_its_own_thread(relays: list[MemoryRelay]) -> None:
    transport, in_process = Scripted(DONE), Scripted(DONE)
    relay = make_relay(relays, transport, None, in_process)
    relay.submit(envelope(1))
    transport.wait_for(1)
    add = relay.source.add

    def overtaken(envelope: Envelope) -> None:
        """Add it once a whole stop is over."""
        relay.stop(20)
        add(envelope)

    relay.source.add = overtaken  # type: ignore[method-assign]
    relay.submit(envelope(2))
    assert in_process.sent == ["2"]


def test_a_child_of_multiprocessing_delivers_before_it_ends(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import multiprocessing, sys\n"
        "from flask import Flask\n"
        "from async_hooks import AsyncHooks, AsyncTask\n"
        "app = Flask('child')\n"
        "app.config['SECRET_KEY'] = 'a key for tests, long enough'\n"
        "hooks = AsyncHooks(app)\n"
        "@hooks.register\n"
        "class Task(AsyncTask):\n"
        "    action = 'a'\n"
        "    def run_action(self, data):\n"
        "        open(sys.argv[1], 'a').write('ran\\n')\n"
        "def work():\n"
        "    with app.app_context():\n"
        "        for _ in range(3):\n"
        "            Task.dispatch({})\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('fork').Process(target=work)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    command = [sys.executable, "child.py", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out").read_text() == "ran\n" * 3


def test_what_a_transport_of_the_users_returns_does_not_matter(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    transport = Scripted(lambda envelope: "message-id-7")
    relay = make_relay(relays, transport)
    relay.submit(envelope(1))
    transport.wait_for(1)
    relay.stop(20)
    assert facts.of("failed") == []


REFUSED = Verdict(Outcome.INTERCEPTED, "The app answered 429.")


def test_a_refused_envelope_is_sent_again_from_the_back_of_the_queue(
    relays: list[MemoryRelay], facts: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    transport = Scripted(REFUSED, DONE)
    relay = make_relay(relays, transport, ASYNC_HOOKS_CONCURRENCY=1)
    for number in (1, 2):
        relay.submit(envelope(number))
    assert transport.wait_for(3) == [envelope(1).id, envelope(2).id, envelope(1).id]
    assert facts.of("failed") == []
    assert caplog.text.count("is sent again later: The app answered 429.") == 1


def test_a_refused_envelope_holds_no_sender(relays: list[MemoryRelay]) -> None:
    transport = Scripted(lambda sent: REFUSED if sent.id == envelope(1).id else DONE)
    relay = make_relay(relays, transport, ASYNC_HOOKS_CONCURRENCY=1)
    for number in range(1, 30):
        relay.submit(envelope(number))
    transport.wait_for(29)
    assert transport.sent[:29] == [envelope(number).id for number in range(1, 30)]


def test_what_is_refused_for_longer_than_a_token_lives_has_failed(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    relay = make_relay(relays, Scripted(REFUSED), max_age=0.1)
    relay.submit(envelope())
    [failed] = facts.wait_for("failed")
    assert str(failed["exception"]) == "The app answered 429."


def test_a_stop_runs_what_was_refused_once_more_and_reports_it(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    transport, in_process = Scripted(REFUSED), Scripted(DONE)
    relay = make_relay(relays, transport, in_process=in_process)
    relay.submit(envelope())
    transport.wait_for(1)
    relay.stop()
    assert len(transport.sent) + len(in_process.sent) == 2
    assert facts.of("failed") == []


def test_a_stop_reports_what_is_refused_to_the_end(relays: list[MemoryRelay], facts: Facts) -> None:
    transport = Scripted(REFUSED)
    relay = make_relay(relays, transport, in_process=Scripted(REFUSED))
    relay.submit(envelope())
    transport.wait_for(1)
    relay.stop()
    assert len(facts.of("failed")) == 1


def test_a_sender_that_hung_up_on_a_run_says_nothing(
    relays: list[MemoryRelay], facts: Facts
) -> None:
    transport = Scripted(Overdue("It takes long."), DONE)
    relay = make_relay(relays, transport, ASYNC_HOOKS_CONCURRENCY=1)
    for number in (1, 2):
        relay.submit(envelope(number))
    transport.wait_for(2)
    assert facts.of("failed") == []


def test_a_thread_is_lent_for_each_that_an_overdue_run_keeps_and_leaves_again(
    action: str,
) -> None:
    app, hooks = make_app(
        ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_TIMEOUT=0.2, ASYNC_HOOKS_CONCURRENCY=2
    )
    release, running = threading.Event(), threading.Semaphore(0)

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        running.release()
        release.wait(30)

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        for _ in range(6):
            task.dispatch({})
    for _ in range(4):  # Two, and two more; there are no more to lend.
        assert running.acquire(timeout=20)
    assert not running.acquire(timeout=0.5)
    pool = state_of(app).memory._pool[os.getpid()]  # type: ignore[attr-defined]
    assert len(pool.threads) == 4
    release.set()
    for _ in range(2):
        assert running.acquire(timeout=20)
    wait_until(lambda: len(pool.threads) == 2, "the end of the lent threads")
