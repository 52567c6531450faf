"""Launches into an outbox, and ``hooks.outbox``, on SQLite and with nothing faked."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import blinker
import pytest
from flask import Flask, has_request_context

from async_hooks import (
    AsyncHooks,
    AsyncTask,
    Auth,
    ConfigError,
    DataError,
    Delivery,
    DeliveryState,
    Discard,
    OutboxRequired,
    OutboxUnavailable,
    Retry,
    async_signal,
    current_envelope,
)
from async_hooks.state import state_of
from tests.support.apps import make_task, plain_app
from tests.support.facts import Facts
from tests.support.waiting import wait_until


class Shop:
    """An app with an outbox, and a relay in this process once something is launched."""

    def __init__(self, **config: Any) -> None:
        self.app = plain_app(
            **{
                "ASYNC_HOOKS_OUTBOX": "sqlite:///outbox.db",
                "ASYNC_HOOKS_TRANSPORT": "in_process",
                **config,
            }
        )
        self.hooks = AsyncHooks(self.app)
        self.path = Path(self.app.instance_path) / "outbox.db"

    def relay(self) -> None:
        """Begin to relay, where the configuration does not."""
        relay: Any = state_of(self.app).relay
        relay.start()

    def wait_for(self, delivery_id: str, state: str) -> Delivery:
        """Return the delivery once it is in ``state``; fail after 20 s."""
        deadline = time.monotonic() + 20
        while True:
            with self.app.app_context():
                delivery = self.hooks.outbox.get(delivery_id)
            if delivery is not None and delivery.state == state:
                return delivery
            assert time.monotonic() < deadline, delivery
            time.sleep(0.01)


@pytest.fixture
def shops() -> Iterator[list[Shop]]:
    made: list[Shop] = []
    yield made
    for shop in made:
        relay: Any = state_of(shop.app).relay
        relay.stop(0)


def set_patience(app: Flask, seconds: float) -> None:
    store = state_of(app).store
    assert store is not None
    store.database._patience = seconds


def open_shop(made: list[Shop], **config: Any) -> Shop:
    made.append(Shop(**config))
    return made[-1]


def lock(path: Path) -> sqlite3.Connection:
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    return writer


# -- configuration


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="would end with its connection"):
        AsyncHooks(plain_app(ASYNC_HOOKS_OUTBOX=url))


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected SQLite, PostgreSQL or MariaDB, got: 'oracle'"):
        AsyncHooks(plain_app(ASYNC_HOOKS_OUTBOX="oracle://host/db"))


def test_a_wrong_url_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError) as raised:
        AsyncHooks(plain_app(ASYNC_HOOKS_OUTBOX="secret-password"))
    assert "secret-password" not in str(raised.value)


def test_the_app_s_own_needs_to_be_named() -> None:
    with pytest.raises(ConfigError, match=r"AsyncHooks\(db=db\)"):
        AsyncHooks(plain_app(ASYNC_HOOKS_OUTBOX="app"))


def test_without_an_outbox_there_is_none_to_look_after() -> None:
    app = plain_app()
    hooks = AsyncHooks(app)
    with app.app_context(), pytest.raises(OutboxRequired, match="'ASYNC_HOOKS_OUTBOX'"):
        _ = hooks.outbox


def test_an_app_without_an_outbox_never_imports_sqlalchemy() -> None:
    code = (
        "import sys, flask, async_hooks\n"
        "app = flask.Flask('a'); app.secret_key = 'k' * 32\n"
        "async_hooks.AsyncHooks(app)\n"
        "assert 'sqlalchemy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sqlite_s_file_is_its_owner_s_alone(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        task.dispatch({})
    for file in shop.path.parent.glob("outbox.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


# -- launching


def test_a_launch_is_a_row_before_the_answer(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    make_task(shop.hooks, action)

    @shop.app.get("/")
    def view() -> dict[str, int]:
        blinker.signal(action).send(shop.app, n=1)
        return shop.hooks.outbox.counts()

    assert shop.app.test_client().get("/").json == {
        "available": 1,
        "executing": 0,
        "waiting": 0,
        "completed": 0,
        "discarded": 0,
        "cancelled": 0,
    }


def test_it_is_delivered_and_its_result_kept(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    task = make_task(shop.hooks, action, run_action=lambda self, data: {"doubled": 2 * data["n"]})
    with shop.app.app_context():
        launched = task.dispatch({"n": 4})
    delivery = shop.wait_for(launched, "completed")
    assert (delivery.result, delivery.attempts, delivery.error) == ({"doubled": 8}, 1, None)
    assert delivery.finished_at is not None
    assert delivery.finished_at.tzinfo is UTC


def test_each_receiver_is_retried_on_its_own(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    make_task(shop.hooks, action)
    seen: list[tuple[str, int]] = []

    @shop.hooks.receiver(action, name="sound")
    def sound(sender: Flask, **data: Any) -> None:
        seen.append(("sound", current_envelope.attempt))

    @shop.hooks.receiver(action, name="flaky", backoff=lambda attempt: 0)
    def flaky(sender: Flask, **data: Any) -> None:
        seen.append(("flaky", current_envelope.attempt))
        if current_envelope.attempt < 3:
            raise ValueError("not yet")

    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app)
    shop.wait_for(launched, "completed")
    with shop.app.app_context():
        children = [d for d in shop.hooks.outbox.find() if d.parent_id == launched]
    for child in children:
        shop.wait_for(child.id, "completed")
    assert sorted(seen) == [("flaky", 1), ("flaky", 2), ("flaky", 3), ("sound", 1)]


def test_discard_and_retry_have_their_own_way(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        if current_envelope.attempt == 1:
            raise Retry(after=0)
        raise Discard("no such customer")

    task = make_task(shop.hooks, action, run_action=run_action)
    with shop.app.app_context():
        launched = task.dispatch({})
    delivery = shop.wait_for(launched, "discarded")
    assert (delivery.attempts, delivery.error) == (2, "Discard: no such customer")


def test_what_a_run_launches_is_added_with_its_completion(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    follow_up = make_task(shop.hooks, f"{action}_2", __qualname__="FollowUp", name="follow_up")
    launched: list[str] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        launched.append(follow_up.dispatch({}))
        assert shop.hooks.outbox.get(launched[-1]) is None

    task = make_task(shop.hooks, action, run_action=run_action, name="first")
    with shop.app.app_context():
        shop.wait_for(task.dispatch({}), "completed")
    shop.wait_for(launched[0], "completed")


def test_what_a_failing_run_launched_goes_all_the_same(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    alarm = make_task(shop.hooks, f"{action}_2", name="alarm")
    launched: list[str] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        launched.append(alarm.dispatch({}))
        raise Discard("broken")

    task = make_task(shop.hooks, action, run_action=run_action, name="first")
    with shop.app.app_context():
        shop.wait_for(task.dispatch({}), "discarded")
    shop.wait_for(launched[0], "completed")


@pytest.mark.parametrize("of", ["seconds", "timedelta", "run_at", "astimezone"])
def test_what_is_for_later_waits(shops: list[Shop], action: str, of: str) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    wishes: dict[str, dict[str, Any]] = {
        "seconds": {"delay": 3600},
        "timedelta": {"delay": timedelta(hours=1)},
        "run_at": {"run_at": at},
        "astimezone": {"run_at": (datetime.now() + timedelta(hours=1)).astimezone()},
    }
    shop = open_shop(shops)
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        delivery = shop.hooks.outbox.get(task.dispatch({}, **wishes[of]))
    assert delivery is not None
    assert delivery.state is DeliveryState.AVAILABLE
    assert 3500 < (delivery.run_at - datetime.now(UTC)).total_seconds() < 3601


def test_delay_and_run_at_exclude_each_other(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    task = make_task(shop.hooks, action)
    with shop.app.app_context(), pytest.raises(ConfigError, match="exclude each other"):
        task.dispatch({}, delay=1, run_at=datetime.now(UTC))


@pytest.mark.parametrize("run_at", [datetime.max, datetime.now(), datetime.min, "tomorrow", 1e9])
def test_a_run_at_that_is_no_certain_time_is_refused_at_launch(
    shops: list[Shop], action: str, run_at: Any, facts: Facts
) -> None:
    shop = open_shop(shops)
    task = make_task(shop.hooks, action, name="later")
    with shop.app.app_context():
        with pytest.raises(ConfigError, match="'later': expected 'run_at' to be a datetime"):
            task.dispatch({}, run_at=run_at)
        assert (facts.of("launched"), shop.hooks.outbox.find()) == ([], [])


def test_a_run_at_past_ten_years_is_refused_as_such_a_delay_is(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action)
    too_late = timedelta(days=3650, minutes=1)
    with shop.app.app_context():
        with pytest.raises(ConfigError, match=r"expected 'delay' .* at most ten years"):
            task.dispatch({}, delay=too_late)
        with pytest.raises(ConfigError, match=r"expected 'run_at' .* at most ten years"):
            task.dispatch({}, run_at=datetime.now(UTC) + too_late)
        task.dispatch({}, run_at=datetime.now(UTC) + timedelta(days=3649))


@pytest.mark.parametrize("at", [1e300, -1e300, 253402300800.0, -62135596801.0, float("inf"), "x"])
def test_a_row_with_an_impossible_time_is_listed_beside_the_others(
    shops: list[Shop], action: str, at: Any
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action, delay=60)
    with shop.app.app_context():
        ids = {task.dispatch({}), task.dispatch({})}
        spoilt = max(ids)
        with closing(sqlite3.connect(shop.path)) as connection:
            statement = "UPDATE async_hooks_deliveries SET run_at = ?, created_at = ? WHERE id = ?"
            connection.execute(statement, (at, at, spoilt))
            connection.commit()
        assert {delivery.id for delivery in shop.hooks.outbox.find()} == ids
        found = shop.hooks.outbox.get(spoilt)
        assert found is not None
        is_late, is_early = (at != "x" and at > 0), (at != "x" and at < 0)
        assert found.run_at.replace(tzinfo=None) == (datetime.max if is_late else datetime.min)
        assert shop.hooks.outbox.why(spoilt)
        assert shop.hooks.outbox.backlog()
        assert (shop.hooks.outbox.overdue() is not None) == is_early
        assert shop.hooks.outbox.health().ok != is_early


@pytest.mark.parametrize("wrong", [-1, float("nan"), timedelta.max, "soon"])
def test_an_age_that_is_no_time_is_refused_by_name(
    shops: list[Shop], action: str, wrong: Any
) -> None:
    shop = open_shop(shops)
    with shop.app.app_context():
        with pytest.raises(ConfigError, match="expected 'older_than' to be a number of seconds"):
            shop.hooks.outbox.purge(wrong)
        with pytest.raises(ConfigError, match="expected 'patience' to be a positive number of"):
            shop.hooks.outbox.health(patience=wrong)


def test_a_unique_key_is_one_delivery_and_the_loser_learns_which(
    shops: list[Shop], action: str, facts: Facts
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action, unique_key=lambda self, data: f"product {data['id']}")
    other = make_task(
        shop.hooks, f"{action}_2", name="other", unique_key=lambda self, data: "product 7"
    )
    with shop.app.app_context():
        first = task.dispatch({"id": 7})
        assert task.dispatch({"id": 7}) == first
        assert task.dispatch({"id": 8}) != first
        assert task.dispatch({"id": 9}, unique_key="product 7") == first
        assert other.dispatch({"id": 7}) != first
        assert shop.hooks.outbox.counts()["available"] == 3
        assert len(facts.of("launched")) == 3
        shop.hooks.outbox.cancel(first)
        assert task.dispatch({"id": 7}) != first


def test_a_ref_finds_the_delivery(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action, ref=lambda self, data: f"order-{data['id']}")
    with shop.app.app_context():
        launched = task.dispatch({"id": 7})
        task.dispatch({"id": 8})
        assert [found.id for found in shop.hooks.outbox.find(ref="order-7")] == [launched]


def test_a_ref_that_is_too_long_is_refused(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action, ref=lambda self, data: "x" * 256)
    with shop.app.app_context(), pytest.raises(DataError, match="up to 255"):
        task.dispatch({})


# -- the end of it


def test_finish_is_told_the_result_once_it_is_written(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    told: list[Any] = []

    def finish(self: AsyncTask, result: Any, data: dict[str, Any]) -> None:
        of = current_envelope.of
        assert of is not None
        first = shop.hooks.outbox.get(of.id)
        assert first is not None
        told.append((result, data, first.state))

    task = make_task(shop.hooks, action, run_action=lambda self, data: 2 * data["n"], finish=finish)
    with shop.app.app_context():
        task.dispatch({"n": 4})
    wait_until(lambda: bool(told))
    assert told == [(8, {"n": 4}, "completed")]


def test_finish_is_told_all_receivers_results_after_the_last(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops)
    told: list[Any] = []
    make_task(shop.hooks, action, finish=lambda self, result, data: told.append((result, data)))
    for number in (1, 2, 3):

        @shop.hooks.receiver(action, name=f"receiver_{number}", backoff=lambda attempt: 0)
        def receive(sender: Flask, number: int = number, **data: Any) -> int:
            if current_envelope.attempt < number:
                raise ValueError("not yet")
            return 10 * number

    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app, n=1)
        wait_until(lambda: bool(told))
        assert told == [({"receiver_1": 10, "receiver_2": 20, "receiver_3": 30}, {"n": 1})]
        parent = shop.hooks.outbox.get(launched)
    assert parent is not None
    assert list(parent.result) == ["receiver_1", "receiver_2", "receiver_3"]


def test_finish_comes_once_with_the_counts_whatever_became_of_the_receivers(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    told: list[Any] = []

    def finish(self: AsyncTask, result: Any, data: dict[str, Any]) -> None:
        group = current_envelope.group
        assert group is not None
        failed = {part.receiver: (part.state, part.error) for part in group.failed}
        told.append((result, dict(group.counts), failed, group.is_finished))

    make_task(shop.hooks, action, finish=finish)

    @shop.hooks.receiver(action, name="sound")
    def sound(sender: Flask, **data: Any) -> str:
        return "sent"

    @shop.hooks.receiver(action, name="broken")
    def broken(sender: Flask, **data: Any) -> None:
        raise Discard("no")

    shop.hooks.receiver(action, name="unwanted")(lambda sender, **data: "never")
    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app)
        outbox = shop.hooks.outbox
        parts = {part.receiver: part.id for part in outbox.find(parent=launched)}
        assert outbox.why(launched).startswith("It waits for the end of ")
        assert all(part in outbox.why(launched) for part in parts.values())
        assert outbox.cancel(parts["unwanted"])
        shop.relay()
        delivery = shop.wait_for(launched, "cancelled")
        wait_until(lambda: bool(told))
        [finishing] = [one for one in outbox.find(root=launched) if one.root_id]
        shop.wait_for(finishing.id, "completed")
        counts = {"completed": 1, "discarded": 1, "cancelled": 1}
        failed = {"broken": ("discarded", "Discard: no"), "unwanted": ("cancelled", None)}
        assert told == [({"sound": "sent"}, counts, failed, True)]
        assert delivery.result == {"sound": "sent"}
        # It is told again when what failed has come to an end again.
        assert outbox.retry(launched)
        wait_until(lambda: len(told) == 2)
        assert told[1][0] == {"sound": "sent", "unwanted": "never"}
        assert told[1][1] == {"completed": 2, "discarded": 1}


def test_of_one_receiver_finish_is_told_by_its_name(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    told: list[Any] = []
    make_task(shop.hooks, action, finish=lambda self, result, data: told.append(result))
    shop.hooks.receiver(action, name="only")(lambda sender, **data: 7)
    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app)
        wait_until(lambda: bool(told))
        group = shop.hooks.outbox.group(launched)
    assert told == [{"only": 7}]
    assert group is not None
    assert (group.total, dict(group.counts), group.is_finished) == (1, {"completed": 1}, True)


def test_finish_comes_when_the_only_receiver_is_discarded(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    told: list[Any] = []

    def finish(self: AsyncTask, result: Any, data: dict[str, Any]) -> None:
        group = current_envelope.group
        assert group is not None
        told.append((result, data, [(part.state, part.error) for part in group.failed]))

    make_task(shop.hooks, action, finish=finish)

    @shop.hooks.receiver(action)
    def broken(sender: Flask, **data: Any) -> None:
        raise Discard("no")

    with shop.app.app_context():
        blinker.signal(action).send(shop.app, n=1)
        wait_until(lambda: bool(told))
        wait_until(lambda: shop.hooks.outbox.counts()["completed"] == 1)
    assert told == [({}, {"n": 1}, [("discarded", "Discard: no")])]


def test_a_completion_that_can_not_be_written_loses_no_finish(
    shops: list[Shop], action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(shops)
    told: list[Any] = []
    make_task(shop.hooks, action, finish=lambda self, result, data: told.append(result))
    shop.hooks.receiver(action, name="only")(lambda sender, **data: 7)
    store = state_of(shop.app).store
    assert store is not None
    record, failures = store.record, [OutboxUnavailable("It is down.")]

    def fail_once(envelope: Any, ending: Any, within: Any = None) -> bool:
        if ending.state is DeliveryState.COMPLETED and failures:
            raise failures.pop()
        return record(envelope, ending, within)

    monkeypatch.setattr(store, "record", fail_once)
    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app)
        shop.wait_for(launched, "completed")
        wait_until(lambda: bool(told))
    assert told == [{"only": 7}]


def test_send_in_finish_says_where_it_works(
    shops: list[Shop], action: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop = open_shop(shops)
    make_task(
        shop.hooks,
        action,
        run_action=lambda self, data: None,
        finish=lambda self, result, data: self.send(),
        max_attempts=1,
    )
    with shop.app.app_context():
        blinker.signal(action).send(shop.app)
        wait_until(lambda: shop.hooks.outbox.counts()["discarded"] == 1)
        [finishing] = shop.hooks.outbox.find(state="discarded")
    assert "'send' works inside run_action" in str(finishing.error)


def test_a_receiver_whose_name_can_not_be_kept_fails_the_run_and_not_the_visitor(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops)
    make_task(shop.hooks, action, max_attempts=1)
    for name in ("a" * 256, "b"):
        shop.hooks.receiver(action, name=name)(lambda sender, **data: None)
    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app)
        assert "no text of up to 255 characters" in str(shop.wait_for(launched, "discarded").error)


def test_an_end_is_told_although_the_visitor_is_gone(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    visitors: list[str | None] = ["ada"]
    told: list[Any] = []
    shop.hooks.identity(lambda: visitors[0] if has_request_context() else None, lambda user: None)
    make_task(
        shop.hooks,
        action,
        auth_level=Auth.LOGGED_IN,
        finish=lambda self, result, data: told.append(("finish", result)),
        discarded=lambda self, data, error: told.append(("discarded", error)),
    )
    for name in ("one", "two"):
        shop.hooks.receiver(action, name=name)(lambda sender, **data: None)

    def launch() -> str:
        blinker.signal(action).send(shop.app)
        visitors[0] = None
        return ""

    shop.app.add_url_rule("/launch", view_func=launch)
    shop.app.test_client().get("/launch")
    wait_until(lambda: len(told) == 3)
    gone = "The visitor it was launched for is gone."
    assert sorted(told, key=str) == [*[("discarded", gone)] * 2, ("finish", {})]


def test_a_finish_that_fails_is_retried_and_runs_nothing_else_again(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops)
    told: list[int] = []
    runs: list[int] = []

    def finish(self: AsyncTask, result: Any, data: dict[str, Any]) -> None:
        told.append(current_envelope.attempt)
        if len(told) < 3:
            raise ValueError("no")

    make_task(
        shop.hooks,
        action,
        run_action=lambda self, data: runs.append(1),
        finish=finish,
        backoff=lambda self, attempt: 0,
    )
    with shop.app.app_context():
        blinker.signal(action).send(shop.app)
        wait_until(lambda: told == [1, 2, 3])
        wait_until(lambda: shop.hooks.outbox.counts()["completed"] == 2)
    assert runs == [1]


def test_a_paused_fan_out_begins_nothing_until_it_is_resumed(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    make_task(shop.hooks, action)
    ran: list[str] = []
    for name in ("one", "two"):
        shop.hooks.receiver(action, name=name)(lambda sender, name=name, **_: ran.append(name))
    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app)
        outbox = shop.hooks.outbox
        assert outbox.pause_delivery(launched)
        assert not outbox.pause_delivery(launched)
        shop.relay()
        other = make_task(shop.hooks, f"{action}_2", name="other", run_action=lambda *_: None)
        shop.wait_for(other.dispatch({}), "completed")
        parts = outbox.find(parent=launched)
        assert [(part.state, part.paused) for part in parts] == [("available", True)] * 2
        assert "paused" in outbox.why(parts[0].id)
        assert ran == []
        assert outbox.resume_delivery(launched)
        shop.wait_for(launched, "completed")
        assert not outbox.resume_delivery(launched)
    assert sorted(ran) == ["one", "two"]


def test_finish_may_launch(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    ran: list[str] = []
    follow_up = make_task(
        shop.hooks, f"{action}_2", name="next", run_action=lambda self, data: ran.append("next")
    )
    task = make_task(
        shop.hooks,
        action,
        run_action=lambda self, data: None,
        finish=lambda self, result, data: follow_up.dispatch({}),
    )
    with shop.app.app_context():
        task.dispatch({})
    wait_until(lambda: ran == ["next"])


@pytest.mark.parametrize("fails", [False, True])
def test_discarded_runs_once_as_an_envelope_of_its_own(
    shops: list[Shop], action: str, fails: bool
) -> None:
    shop = open_shop(shops)
    told: list[Any] = []

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise Discard("no such customer")

    def discarded(self: AsyncTask, data: dict[str, Any], error: str) -> None:
        assert current_envelope.of is not None
        told.append((data, error, current_envelope.attempt, current_envelope.of.id))
        assert current_envelope.data == data
        if fails:
            raise ValueError("once is enough")

    task = make_task(shop.hooks, action, run_action=run_action, discarded=discarded)
    with shop.app.app_context():
        launched = task.dispatch({"n": 1})
        shop.wait_for(launched, "discarded")
        wait_until(lambda: bool(told))
        own = next(d for d in shop.hooks.outbox.find() if d.id != launched)
        shop.wait_for(own.id, "discarded" if fails else "completed")
    assert told == [({"n": 1}, "Discard: no such customer", 1, launched)]


def test_results_and_errors_are_redacted_before_they_are_kept(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops)
    shop.hooks.redact(lambda value: str(value).replace("secret", "…"))

    def run_action(self: AsyncTask, data: dict[str, Any]) -> str:
        if data["fails"]:
            raise Discard("a secret")
        return "my secret"

    task = make_task(shop.hooks, action, run_action=run_action)
    with shop.app.app_context():
        assert shop.wait_for(task.dispatch({"fails": False}), "completed").result == "my …"
        assert shop.wait_for(task.dispatch({"fails": True}), "discarded").error == "Discard: a …"


def test_a_result_that_is_no_json_is_kept_in_words(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    task = make_task(shop.hooks, action, run_action=lambda self, data: {1, 2})
    with shop.app.app_context():
        assert shop.wait_for(task.dispatch({}), "completed").result == "{1, 2}"


# -- the outbox down


def test_a_launch_that_can_t_be_kept_is_an_error_before_the_answer(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        task.dispatch({})

    @shop.app.get("/")
    def view() -> str:
        blinker.signal(action).send(shop.app)
        return "ok"

    shop.app.config["PROPAGATE_EXCEPTIONS"] = False
    set_patience(shop.app, 0.05)
    with closing(lock(shop.path)):
        assert shop.app.test_client().get("/").status_code == 500
        with shop.app.app_context(), pytest.raises(OutboxUnavailable, match="locked"):
            task.dispatch({})
    assert shop.app.test_client().get("/").status_code == 200


def test_with_loopback_for_an_emergency_it_goes_unkept_and_loudly(
    shops: list[Shop], action: str, facts: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_OUTBOX_DOWN="loopback")
    task = make_task(shop.hooks, action, run_action=lambda self, data: None)
    with shop.app.app_context():
        shop.wait_for(task.dispatch({}), "completed")
        set_patience(shop.app, 0.05)
        with closing(lock(shop.path)):
            launched = task.dispatch({})
            assert [fact["envelope"].id for fact in facts.wait_for("succeeded", 2)][1] == launched
        assert shop.hooks.outbox.get(launched) is None
    assert "go by loopback, not recorded" in caplog.text


# -- looking after them


def test_a_discarded_delivery_is_sent_again(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    broken = [True]

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        if broken:
            raise Discard("broken")

    task = make_task(shop.hooks, action, run_action=run_action)
    with shop.app.app_context():
        launched = task.dispatch({})
        shop.wait_for(launched, "discarded")
        broken.clear()
        assert shop.hooks.outbox.retry(launched)
        delivery = shop.wait_for(launched, "completed")
    assert (delivery.attempts, delivery.error) == (1, None)


def test_of_a_fan_out_only_what_failed_is_sent_again(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    make_task(shop.hooks, action)
    runs: list[str] = []
    broken = [True]

    @async_signal(action).connect
    def sound(sender: Flask, **data: Any) -> None:
        runs.append("sound")

    @async_signal(action).connect
    def broken_one(sender: Flask, **data: Any) -> None:
        runs.append("broken")
        if broken:
            raise Discard("broken")

    with shop.app.app_context():
        [(_, launched)] = blinker.signal(action).send(shop.app)
        shop.wait_for(launched, "discarded")
        child = next(d for d in shop.hooks.outbox.find() if str(d.receiver).endswith("broken_one"))
        shop.wait_for(child.id, "discarded")
        broken.clear()
        assert shop.hooks.outbox.retry(launched)
        shop.wait_for(child.id, "completed")
        assert not shop.hooks.outbox.retry(launched)
    assert sorted(runs) == ["broken", "broken", "sound"]


def test_a_paused_queue_waits_and_says_why(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    task = make_task(shop.hooks, action, queue="slow", run_action=lambda self, data: None)
    with shop.app.app_context():
        shop.hooks.outbox.pause("slow")
        shop.hooks.outbox.pause("slow")
        launched = task.dispatch({}, delay=0.01)
        other = task.dispatch({}, queue="other")
        shop.wait_for(other, "completed")
        assert shop.hooks.outbox.paused() == ["slow"]
        assert "the queue 'slow' is paused" in shop.hooks.outbox.why(launched)
        shop.hooks.outbox.resume("slow")
    shop.wait_for(launched, "completed")


def test_what_is_rescheduled_to_now_is_run_now(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    task = make_task(shop.hooks, action, run_action=lambda self, data: None)
    with shop.app.app_context():
        # The relay lives, and would look again in seconds only.
        shop.wait_for(task.dispatch({}), "completed")
        later = task.dispatch({}, delay=3600)
        assert shop.hooks.outbox.reschedule(later, datetime.now(UTC))
        shop.wait_for(later, "completed")
        assert not shop.hooks.outbox.reschedule(later, datetime.now(UTC))
        assert shop.hooks.outbox.delete(later)
        assert shop.hooks.outbox.get(later) is None


def test_why_has_a_sentence_for_each_state(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        outbox = shop.hooks.outbox
        due, later, cancelled = task.dispatch({}), task.dispatch({}, delay=60), task.dispatch({})
        assert outbox.cancel(cancelled)
        assert not outbox.cancel(cancelled)
        assert outbox.why(due) == "It is due, and no process relays."
        assert outbox.why(later).startswith("It waits for its time, ")
        assert outbox.why(cancelled).startswith("It was cancelled at ")
        assert outbox.why("nonsense") == (
            "No delivery 'nonsense' (it never existed, or has been purged)."
        )


def test_health_is_red_when_nothing_gets_away(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        assert shop.hooks.outbox.health().ok
        task.dispatch({})
        health = shop.hooks.outbox.health()
    assert (health.ok, health.problem) == (False, "A delivery is due, and no process relays.")


def test_health_is_green_while_a_relay_keeps_up(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops)
    task = make_task(shop.hooks, action, run_action=lambda self, data: None)
    with shop.app.app_context():
        shop.wait_for(task.dispatch({}), "completed")
        health = shop.hooks.outbox.health()
    assert health.ok
    assert [relay.is_alive for relay in health.relays] == [True]


def test_health_is_red_once_the_tables_vanished_until_they_are_asked_for(
    shops: list[Shop], action: str
) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        outbox = shop.hooks.outbox
        task.dispatch({})
        for file in shop.path.parent.glob("outbox.db*"):
            file.unlink()
        assert outbox.cancel(task.dispatch({}))
        assert len(outbox.find()) == 1
        health = outbox.health()
        assert not health.ok
        assert "had vanished" in str(health.problem)
        outbox.create()
        assert outbox.health().ok


def test_purge_deletes_what_finished_long_enough_ago(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, ASYNC_HOOKS_RELAY=False)
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        cancelled, kept = task.dispatch({}), task.dispatch({})
        shop.hooks.outbox.cancel(cancelled)
        assert shop.hooks.outbox.purge(timedelta(hours=1)) == 0
        assert shop.hooks.outbox.purge(0) == 1
        assert [found.id for found in shop.hooks.outbox.find()] == [kept]


def test_an_unknown_state_is_refused_by_find(shops: list[Shop]) -> None:
    shop = open_shop(shops)
    with shop.app.app_context(), pytest.raises(ValueError, match="'done' is not a valid"):
        shop.hooks.outbox.find(state="done")


# -- in tests of apps


def test_eager_apps_wait_for_nothing_and_refuse_no_wish(action: str) -> None:
    app = plain_app(
        ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db", ASYNC_HOOKS_TRANSPORT="eager", TESTING=True
    )
    hooks = AsyncHooks(app)
    ran: list[int] = []
    task = make_task(hooks, action, run_action=lambda self, data: ran.append(data["n"]))
    with app.app_context():
        task.dispatch({"n": 1}, delay=3600, unique_key="x")
    assert ran == [1]


def test_a_recording_test_needs_no_database(action: str) -> None:
    app = plain_app(ASYNC_HOOKS_OUTBOX="postgresql://nobody@127.0.0.1:1/none", TESTING=True)
    hooks = AsyncHooks(app)
    ran: list[int] = []
    task = make_task(hooks, action, run_action=lambda self, data: ran.append(data["n"]))
    with hooks.testing(app) as recorder, app.app_context():
        task.dispatch({"n": 1}, delay=3600)
        assert recorder.run_all() == 1
    assert ran == [1]


def test_no_relay_starts_by_itself_in_a_test(shops: list[Shop], action: str) -> None:
    shop = open_shop(shops, TESTING=True, ASYNC_HOOKS_TESTING="live")
    task = make_task(shop.hooks, action)
    with shop.app.app_context():
        task.dispatch({})
        assert shop.hooks.outbox.relays() == []
        assert shop.hooks.outbox.counts()["available"] == 1


def test_a_run_that_would_split_among_receivers_of_one_name_is_parked_unbegun(
    shops: list[Shop], action: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop = open_shop(shops, TESTING=True, ASYNC_HOOKS_TESTING="live")
    task = make_task(shop.hooks, action, name="order")
    ran: list[int] = []
    receivers = [lambda sender, n=n: ran.append(n) for n in range(2)]
    async_signal(action).connect(receivers[0])
    with shop.app.app_context():
        launched = task.dispatch({})
    async_signal(action).connect(receivers[1])
    relay: Any = state_of(shop.app).relay
    relay.start()
    wait_until(lambda: "parked: 2 receivers of task 'order'" in caplog.text, "the warning")
    delivery = shop.wait_for(launched, "available")
    assert (delivery.attempts, ran) == (0, [])
