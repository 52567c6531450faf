"""Checkpoints, progress and Continue, as a run sees them; it runs when a test says so."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from async_hooks import (
    AsyncHooks,
    AsyncHooksError,
    Continue,
    DataError,
    Delivery,
    Interrupted,
    OutboxRequired,
    current_envelope,
)
from async_hooks.cli import cli
from async_hooks.current import current_attempt
from async_hooks.delivery import Claim
from async_hooks.endpoint.attempt import Slot
from async_hooks.envelope import Envelope, new_id
from async_hooks.errors import ConfigError, OutboxUnavailable
from async_hooks.receivers import kinds_of
from async_hooks.relay.progress import ProgressWriter
from async_hooks.signals import task_overdue
from async_hooks.state import state_of
from async_hooks.transports.in_process import InProcess
from async_hooks.verdict import Outcome, Verdict
from tests.support.apps import make_app, make_task, plain_app
from tests.support.facts import Facts
from tests.support.waiting import wait_until

Action = Callable[[dict[str, Any]], object]


class Shop:
    """An app with an outbox and one task, whose deliveries run when the test says so."""

    def __init__(self, folder: Path, action: str, run: Action, **members: Any) -> None:
        config = {key: members.pop(key) for key in list(members) if key.isupper()}
        self.app = plain_app(
            ASYNC_HOOKS_OUTBOX=f"sqlite:///{folder}/outbox.db",
            ASYNC_HOOKS_RELAY=False,
            ASYNC_HOOKS_TRANSPORT="in_process",
            **config,
        )
        self.hooks = AsyncHooks(self.app)
        self.task = make_task(
            self.hooks, action, run_action=lambda task, data: run(data), **members
        )
        self.state = state_of(self.app)

    @property
    def process(self) -> Any:
        return self.state.process[os.getpid()]

    def dispatch(self, n: int = 1, **options: Any) -> str:
        with self.app.app_context():
            return self.task.dispatch({"n": n}, **options)

    def delivery(self, delivery_id: str) -> Delivery:
        with self.app.app_context():
            found = self.hooks.outbox.get(delivery_id)
        assert found is not None
        return found

    def ask(self, question: Callable[[Any], Any]) -> Any:
        with self.app.app_context():
            return question(self.hooks.outbox)

    def numbers(self) -> list[int]:
        return sorted(each.data["n"] for each in self.ask(lambda outbox: outbox.find()))

    def sql(self, statement: str) -> None:
        assert self.state.store is not None
        with self.state.store.database.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def work(self) -> list[Verdict]:
        """Run what is due, each once, and settle it."""
        relay: Any = self.state.relay
        verdicts = []
        for envelope in self.claim():
            verdicts.append(InProcess(self.app).send(envelope))
            relay.source.settle(envelope, verdicts[-1])
        return verdicts

    def claim(self) -> list[Envelope]:
        assert self.state.store is not None
        claim = Claim(self.process.id, new_id())
        return self.state.store.claim(claim, kinds_of(self.state), 100)[0]


def stepping(log: list[Any], breaks: Callable[[int], object] = lambda step: None) -> Action:
    """Return a run of four steps, each of which ends with a checkpoint."""

    def run(data: dict[str, Any]) -> None:
        log.append("begin")
        for step in range((current_envelope.cursor or 0) + 1, 5):
            log.append(step)
            breaks(step)
            current_envelope.checkpoint(step, done=step, total=4, text="stepping")

    return run


# -- what ends a run at a checkpoint


def pause(shop: Shop) -> None:
    [delivery] = shop.ask(lambda outbox: outbox.find())
    assert shop.ask(lambda outbox: outbox.pause_delivery(delivery.id))


def stop(shop: Shop) -> None:
    shop.process.stopping.set()


class Gunicorn:
    """What handles SIGTERM in a worker of gunicorn's."""

    alive = False

    def handle_exit(self, *_: object) -> None: ...


Gunicorn.__module__ = "gunicorn.workers.gthread"


def stop_server(shop: Shop) -> None:
    signal.signal(signal.SIGTERM, Gunicorn().handle_exit)


@pytest.mark.parametrize("interrupt", [pause, stop, stop_server])
def test_a_run_is_interrupted_at_its_next_checkpoint_and_goes_on_there(
    tmp_path: Path,
    action: str,
    interrupt: Callable[[Shop], None],
    facts: Facts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    log: list[Any] = []
    shop = Shop(
        tmp_path, action, stepping(log, lambda step: interrupt(shop) if step == 2 else None)
    )
    launched = shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, verdict.is_recorded) == (Outcome.INTERRUPTED, True)
    delivery = shop.delivery(launched)
    assert (log, delivery.state, delivery.attempts) == (["begin", 1, 2], "available", 0)
    assert (delivery.cursor, delivery.error) == (2, None)
    assert [name for name in ("failed", "succeeded", "retrying") if facts.of(name)] == []
    assert not caplog.records
    assert delivery.paused is (interrupt is pause)
    if delivery.paused:
        assert shop.work() == []
        assert shop.ask(lambda outbox: outbox.resume_delivery(launched))
    shop.process.stopping.clear()
    signal.signal(signal.SIGTERM, before)
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.COMPLETED
    assert log == ["begin", 1, 2, "begin", 3, 4]
    assert shop.delivery(launched).attempts == 1


def test_a_cancelled_run_ends_at_its_next_checkpoint_for_good(tmp_path: Path, action: str) -> None:
    log: list[Any] = []

    def cancel(step: int) -> None:
        assert not current_envelope.is_cancelled
        if step == 2:
            shop.ask(lambda outbox: outbox.cancel(current_envelope.id))
            assert current_envelope.is_cancelled

    shop = Shop(tmp_path, action, stepping(log, cancel))
    launched = shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, log) == (Outcome.INTERRUPTED, ["begin", 1, 2])
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.cursor) == ("cancelled", 1)
    assert shop.work() == []


def test_a_cancelled_run_that_asks_for_its_cursor_is_interrupted(
    tmp_path: Path, action: str
) -> None:
    def run(data: dict[str, Any]) -> None:
        shop.ask(lambda outbox: outbox.cancel(current_envelope.id))
        assert current_envelope.cursor is None, "it would begin at the beginning"

    shop = Shop(tmp_path, action, run)
    shop.dispatch()
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.INTERRUPTED


@pytest.mark.parametrize("slice_seconds", [1e-9, timedelta(microseconds=1)])
def test_a_slice_ends_behind_those_that_wait(
    tmp_path: Path, action: str, slice_seconds: Any
) -> None:
    log: list[Any] = []
    steps = stepping(log)

    def run(data: dict[str, Any]) -> None:
        log.append(f"n{data['n']}")
        steps(data)

    shop = Shop(tmp_path, action, run, slice_seconds=slice_seconds, max_attempts=1)
    first, second = shop.dispatch(1), shop.dispatch(2)
    for _ in range(4):
        assert {verdict.outcome for verdict in shop.work()} == {Outcome.INTERRUPTED}
    assert [verdict.outcome for verdict in shop.work()] == [Outcome.COMPLETED] * 2
    assert [each for each in log if each in ("n1", "n2")] == ["n1", "n2"] * 5
    assert [each for each in log if isinstance(each, int)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert {shop.delivery(each).attempts for each in (first, second)} == {1}


def test_a_run_that_swallows_it_is_interrupted_again_and_its_end_counts(
    tmp_path: Path, action: str
) -> None:
    told: list[type[BaseException]] = []

    def run(data: dict[str, Any]) -> str:
        shop.process.stopping.set()
        for step in range(3):
            try:
                current_envelope.checkpoint(step)
            except Exception:
                raise AssertionError("it survives this") from None
            except BaseException as error:
                told.append(type(error))
                shop.process.stopping.clear()
        return "done"

    shop = Shop(tmp_path, action, run)
    launched = shop.dispatch()
    [verdict] = shop.work()
    assert told == [Interrupted] * 3
    assert verdict.outcome is Outcome.COMPLETED
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.result, delivery.cursor) == ("completed", "done", 2)


def test_an_asynchronous_run_is_interrupted_as_any_other(tmp_path: Path, action: str) -> None:
    async def run(data: dict[str, Any]) -> None:
        shop.process.stopping.set()
        assert current_envelope.cursor is None
        current_envelope.checkpoint(7)

    shop = Shop(tmp_path, action, run)
    launched = shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, shop.delivery(launched).cursor) == (Outcome.INTERRUPTED, 7)


def test_what_is_launched_behind_the_checkpoint_that_interrupts_is_launched_again(
    tmp_path: Path, action: str
) -> None:
    def run(data: dict[str, Any]) -> None:
        if data["n"] > 1:
            return
        shop.task.dispatch({"n": 10}, delay=60)
        shop.process.stopping.set()
        try:
            if current_envelope.cursor is None:
                current_envelope.checkpoint(1)
        finally:
            shop.task.dispatch({"n": 20}, delay=60)

    shop = Shop(tmp_path, action, run)
    shop.dispatch()
    shop.work()
    assert shop.numbers() == [1, 10]
    shop.work()
    assert shop.numbers() == [1, 10, 10, 20]


def test_an_interrupted_raised_by_hand_is_a_failure_like_any_other(
    tmp_path: Path, action: str
) -> None:
    def run(data: dict[str, Any]) -> None:
        raise Interrupted("I say so")

    shop = Shop(tmp_path, action, run, max_attempts=1, PROPAGATE_EXCEPTIONS=True)
    launched = shop.dispatch()
    shop.work()
    assert shop.delivery(launched).state == "discarded"


def test_a_failing_step_is_retried_from_its_cursor_as_often_as_attempts_are_left(
    tmp_path: Path, action: str
) -> None:
    """Each new cursor begins the count anew; a step that never succeeds uses it up."""
    log: list[Any] = []

    def fail(step: int) -> None:
        if log.count(step) < 3 or step == 4:
            raise LookupError(step)

    shop = Shop(tmp_path, action, stepping(log, fail), max_attempts=3, backoff=lambda self, n: 0)
    launched = shop.dispatch()
    while shop.delivery(launched).state == "available":
        shop.work()
    assert [each for each in log if isinstance(each, int)] == [
        *[1] * 3,
        *[2] * 3,
        *[3] * 3,
        *[4] * 3,
    ]
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.cursor, delivery.attempts) == ("discarded", 3, 9)


def test_an_outbox_that_is_down_interrupts_and_burns_no_attempt(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise OutboxUnavailable("It is down.")

    def run(data: dict[str, Any]) -> None:
        monkeypatch.setattr(shop.state.store, "checkpoint", down)
        current_envelope.checkpoint(1)

    shop = Shop(tmp_path, action, run, max_attempts=1)
    launched = shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, verdict.is_recorded) == (Outcome.UNWRITTEN, False)
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.attempts) == ("available", 0)


def test_an_interruption_that_can_not_be_recorded_is_left_to_the_sender(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise OutboxUnavailable("It is down.")

    def run(data: dict[str, Any]) -> None:
        shop.process.stopping.set()
        monkeypatch.setattr(shop.state.store, "record", down)
        current_envelope.checkpoint(1)

    shop = Shop(tmp_path, action, run)
    launched = shop.dispatch()
    [envelope] = shop.claim()
    verdict = InProcess(shop.app).send(envelope)
    assert (verdict.outcome, verdict.is_recorded) == (Outcome.INTERRUPTED, False)
    monkeypatch.undo()
    assert shop.delivery(launched).state == "executing"
    relay: Any = shop.state.relay
    relay.source.settle(envelope, verdict)
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.attempts, delivery.cursor) == ("available", 0, 1)


# -- what it may be called with, and where


@pytest.mark.parametrize("verb", ["checkpoint", "progress"])
def test_what_is_kept_is_json_of_at_most_16_kb(tmp_path: Path, action: str, verb: str) -> None:
    errors: list[str] = []

    def run(data: dict[str, Any]) -> None:
        for value in (object(), float("nan"), "x" * 20_000, {1: 2}):
            with pytest.raises(DataError) as error:
                getattr(current_envelope, verb)(value)
            errors.append(str(error.value))
        current_envelope.checkpoint({"at": [1, None, "x" * 16_000]}, text="ä" * 100)
        assert current_envelope.cursor == {"at": [1, None, "x" * 16_000]}

    shop = Shop(tmp_path, action, run)
    shop.dispatch()
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.COMPLETED, verdict.error
    name = "'cursor'" if verb == "checkpoint" else "'progress'"
    assert errors[2].startswith(f"{name} is 20")
    assert "16384 are allowed" in errors[2]


def test_outside_of_a_run_each_says_where_it_works() -> None:
    for name in ("cursor", "checkpoint", "progress", "is_cancelled"):
        with pytest.raises(RuntimeError, match="in a run only"):
            getattr(current_envelope, name)


@pytest.mark.parametrize("has_outbox", [True, False])
def test_in_a_run_but_outside_of_run_action_each_is_refused(
    tmp_path: Path, action: str, has_outbox: bool
) -> None:
    shop = Shop(tmp_path, action, lambda data: None)
    errors: list[str] = []

    @shop.app.before_request
    def look() -> None:
        for ask in (
            lambda: current_envelope.cursor,
            lambda: current_envelope.is_cancelled,
            lambda: current_envelope.checkpoint(1),
            lambda: current_envelope.progress(1),
        ):
            with pytest.raises(AsyncHooksError, match="inside run_action only") as error:
                ask()
            errors.append(str(error.value))

    shop.dispatch()
    assert [verdict.outcome for verdict in shop.work()] == [Outcome.COMPLETED]
    assert len(errors) == 4


def test_without_an_outbox_the_same_code_runs_and_keeps_nothing(action: str) -> None:
    app, hooks = make_app()
    log: list[Any] = []
    run = stepping(log, lambda step: current_envelope.progress(step))

    def run_action(self: Any, data: dict[str, Any]) -> None:
        run(data)
        assert (current_envelope.cursor, current_envelope.is_cancelled) == (None, False)
        with pytest.raises(DataError):
            current_envelope.checkpoint(object())

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        task.dispatch({})
    assert log == ["begin", 1, 2, 3, 4]


def test_under_test_the_same_code_runs_and_keeps_nothing(tmp_path: Path, action: str) -> None:
    log: list[Any] = []
    shop = Shop(tmp_path, action, stepping(log), TESTING=True)
    with shop.app.app_context(), shop.hooks.testing(shop.app) as recorder:
        shop.task.dispatch({"n": 1})
        recorder.run_all()
    assert log == ["begin", 1, 2, 3, 4]


def test_the_new_options_need_an_outbox_and_are_checked(action: str) -> None:
    for key in ("expires", "slice_seconds"):
        with pytest.raises(OutboxRequired, match=key):
            make_task(make_app()[1], action, **{key: 5})
        with pytest.raises(ConfigError, match=f"{key}.*positive number of seconds"):
            make_task(AsyncHooks(), action, **{key: 0})
        job = AsyncHooks().job(lambda: None, name=action, **{key: 5})
        assert getattr(job.task, key) == 5


# -- progress and the deadline


def test_both_move_the_deadline_so_that_a_long_run_is_never_overdue(
    tmp_path: Path, action: str
) -> None:
    def run(data: dict[str, Any]) -> None:
        attempt: Any = current_attempt.get()
        attempt.slot = Slot(0.0)
        [running] = shop.process.runs._running.values()
        for move in (current_envelope.checkpoint, current_envelope.progress):
            running.until = attempt.slot.until = 0.0
            move(7)
            assert attempt.slot.until > time.monotonic() + 50
            shop.process.runs._overdue(running)  # As the timer does, once the first time is over.
            assert (running.is_overdue, running.overdue_for() < -50) == (False, True)
        running.until = 0.0
        shop.process.runs._overdue(running)
        assert running.is_overdue

    shop = Shop(tmp_path, action, run, timeout=60)
    shop.dispatch()
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.COMPLETED, verdict.error


def test_an_overdue_run_that_goes_on_is_in_time_again_and_overdue_again(
    tmp_path: Path, action: str
) -> None:
    overdue: list[Envelope] = []

    def note(sender: Any, *, envelope: Envelope) -> None:
        overdue.append(envelope)

    def has_reported(number: int) -> bool:
        return len(overdue) == number

    def run(data: dict[str, Any]) -> None:
        for number in (1, 2):
            wait_until(partial(has_reported, number))
            assert len(shop.process.runs.overdue()) == 1
            current_envelope.checkpoint(number)
            assert shop.process.runs.overdue() == []

    shop = Shop(tmp_path, action, run, timeout=0.05)
    shop.dispatch()
    with task_overdue.connected_to(note):
        [verdict] = shop.work()
    assert (verdict.outcome, len(overdue)) == (Outcome.COMPLETED, 2)


def test_progress_is_written_by_the_process_and_shown(tmp_path: Path, action: str) -> None:
    seen: list[Any] = []

    def run(data: dict[str, Any]) -> None:
        assert shop.state.store is not None
        writer = ProgressWriter(shop.process, shop.state.store)
        for done in (119, 120):
            current_envelope.progress(done, 200, "reading")
        assert shop.delivery(current_envelope.id).progress is None
        assert writer.write(5) == 5
        current_envelope.progress(121)
        assert 0 < writer.write(5) <= 1  # Not so soon again.
        seen.append(shop.delivery(current_envelope.id).progress)
        seen.append(shop.ask(lambda outbox: outbox.why(current_envelope.id)))
        seen.append(shop.app.test_cli_runner().invoke(cli, ["deliveries"]).output)

    shop = Shop(tmp_path, action, run)
    launched = shop.dispatch()
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.COMPLETED, verdict.error
    assert seen[0] == {"done": 120, "total": 200, "text": "reading"}
    assert "(done 120 of 200: reading)" in seen[1]
    assert "done 120 of 200: reading" in seen[2]
    assert shop.delivery(launched).as_dict()["progress"] == seen[0]


def test_a_delivery_as_a_dict_is_json(tmp_path: Path, action: str) -> None:
    shop = Shop(tmp_path, action, stepping([]))
    launched = shop.dispatch()
    shop.work()
    found = json.loads(json.dumps(shop.delivery(launched).as_dict()))
    assert (found["id"], found["state"], found["cursor"]) == (launched, "completed", 4)
    assert found["progress"] == {"done": 4, "total": 4, "text": "stepping"}
    assert found["created_at"].endswith("+00:00")


# -- Continue and expires


def test_continue_runs_the_same_delivery_again_and_uses_up_nothing(
    tmp_path: Path, action: str, facts: Facts
) -> None:
    log: list[Any] = []

    def run(data: dict[str, Any]) -> str:
        log.append((data["n"], current_envelope.attempt, current_envelope.depth))
        if data["n"] < 8:
            raise Continue({"n": data["n"] + 1})
        return "done"

    shop = Shop(tmp_path, action, run, max_attempts=1)
    launched = shop.dispatch()
    verdicts = [verdict for _ in range(8) for verdict in shop.work()]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CONTINUED] * 7 + ["completed"]
    assert log == [(n, 1, 0) for n in range(1, 9)]
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.result, delivery.attempts) == ("completed", "done", 1)
    assert (len(facts.of("succeeded")), facts.of("failed")) == (1, [])


def test_continue_waits_and_keeps_its_data_where_it_has_none(tmp_path: Path, action: str) -> None:
    def run(data: dict[str, Any]) -> None:
        current_envelope.checkpoint(7)
        raise Continue(after=timedelta(minutes=1))

    shop = Shop(tmp_path, action, run)
    launched = shop.dispatch()
    before = shop.delivery(launched)
    shop.work()
    delivery = shop.delivery(launched)
    assert (delivery.data, delivery.cursor, delivery.state) == ({"n": 1}, 7, "available")
    assert 60 <= (delivery.run_at - before.run_at).total_seconds() < 90


@pytest.mark.parametrize("data", [{"n": object()}, ["n"], {"n": "x" * 2**21}])
def test_continue_with_data_that_can_not_travel_is_a_failure(
    tmp_path: Path, action: str, data: Any, facts: Facts
) -> None:
    def run(_: dict[str, Any]) -> None:
        shop.task.dispatch({"n": 2}, delay=60)
        raise Continue(data)

    shop = Shop(tmp_path, action, run, max_attempts=1)
    launched = shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, shop.delivery(launched).state) == (Outcome.FAILED, "discarded")
    assert "DataError" in str(shop.delivery(launched).error)
    assert len(facts.of("failed")) == 1
    assert len(shop.ask(lambda outbox: outbox.find(state="available"))) == 1


def test_continue_after_no_time_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="number of seconds"):
        Continue(after=-1)


def test_without_an_outbox_continue_is_refused_as_a_retry_is(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="in_process")

    def run_action(self: Any, data: dict[str, Any]) -> None:
        raise Continue({"n": 2})

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        task.dispatch({"n": 1})
    wait_until(lambda: "needs an outbox" in caplog.text)


def test_what_did_not_begin_in_time_is_discarded(tmp_path: Path, action: str) -> None:
    ran: list[Any] = []
    shop = Shop(tmp_path, action, ran.append, expires=60)
    late, in_time = shop.dispatch(1), shop.dispatch(2)
    shop.sql(f"UPDATE async_hooks_deliveries SET created_at = created_at - 61 WHERE id = '{late}'")
    shop.work()
    assert ran == [{"n": 2}]
    assert shop.delivery(in_time).state == "completed"
    delivery = shop.delivery(late)
    assert (delivery.state, delivery.attempts) == ("discarded", 1)
    assert "It expired: it would run 61 seconds after its launch, and has 60" in str(delivery.error)


@pytest.mark.parametrize(
    ("expires", "age", "after", "state"),
    [
        (60, 0, 59, "available"),
        (60, 0, 61, "discarded"),
        (None, 29 * 24 * 3600, 0, "available"),
        (None, 29 * 24 * 3600, 2 * 24 * 3600, "discarded"),
        (None, 31 * 24 * 3600, None, "discarded"),
    ],
)
def test_continue_ends_when_the_delivery_expires(
    tmp_path: Path, action: str, expires: int | None, age: int, after: int | None, state: str
) -> None:
    def run(data: dict[str, Any]) -> None:
        raise Continue(after=after)

    shop = Shop(tmp_path, action, run, expires=expires)
    launched = shop.dispatch()
    shop.sql(f"UPDATE async_hooks_deliveries SET created_at = created_at - {age}")
    shop.work()
    delivery = shop.delivery(launched)
    assert delivery.state == state
    assert ("It expired" in str(delivery.error)) is (state == "discarded")


# -- waiting for the end


def test_wait_returns_the_delivery_once_it_has_finished(tmp_path: Path, action: str) -> None:
    shop = Shop(tmp_path, action, lambda data: data["n"])
    launched = shop.dispatch(7)
    with pytest.raises(TimeoutError, match="is available"):
        shop.ask(lambda outbox: outbox.wait(launched, 0.05))
    shop.work()
    assert shop.ask(lambda outbox: outbox.wait(launched, timedelta(seconds=5))).result == 7
    with pytest.raises(AsyncHooksError, match="No delivery 'x'"):
        shop.ask(lambda outbox: outbox.wait("x", 5))


@pytest.mark.parametrize("relay", [True, False])
def test_wait_is_refused_where_it_may_wait_for_itself(
    tmp_path: Path, action: str, relay: bool
) -> None:
    refused: list[bool] = []

    def wait(*_: object) -> str:
        try:
            shop.hooks.outbox.wait(done, 0)
        except AsyncHooksError as error:
            refused.append("keeps the thread" in str(error))
        else:
            refused.append(False)
        return ""

    shop = Shop(tmp_path, action, lambda data: wait() if data["n"] == 2 else None)
    shop.app.add_url_rule("/", view_func=wait)
    done = shop.dispatch(1)
    shop.work()
    shop.dispatch(2)
    assert [verdict.outcome for verdict in shop.work()] == [Outcome.COMPLETED]
    object.__setattr__(shop.state.config, "relay", relay)
    shop.app.test_client().get("/")
    assert refused == [True, relay]
