"""What a task declares of its limits, what its launches become, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from async_hooks import AsyncHooks, AsyncTask, ConfigError, DataError, OutboxRequired
from async_hooks.delivery import Claim, DeliveryState, Ending
from async_hooks.envelope import new_id
from async_hooks.limits import limits_by_name
from async_hooks.outbox.keys.held import Kinds
from async_hooks.outbox.keys.promotion import Promotion
from async_hooks.outbox.report import in_words, moment
from async_hooks.outbox.sql.connections import Connection
from async_hooks.state import state_of
from tests.support.apps import plain_app

KINDS: Kinds = frozenset({("shop.Task", "")})


def declared(**members: Any) -> type[AsyncTask]:
    return type("Declared", (AsyncTask,), {"action": "a", "name": "shop.Task", **members})


def key(self: AsyncTask, data: dict[str, Any]) -> str:
    return str(data.get("key", ""))


# -- what is declared


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"limit": 0}, "expected 'limit' to be a positive whole number, got: 0"),
        ({"limit": "2"}, "expected 'limit' to be a positive whole number, got: '2'"),
        ({"rate": 5}, "expected 'rate' to be so many per s, m, h or d, such as '100/m', got: 5"),
        ({"rate": "100/min"}, "such as '100/m', got: '100/min'"),
        ({"rate": "0/m"}, "such as '100/m', got: '0/m'"),
        ({"rate": "1/s", "burst": 0}, "expected 'burst' to be a positive whole number"),
        ({"burst": 2}, "'burst' has no effect without 'rate'. Declare 'rate' as well, or leave"),
        ({"limit_key": key}, "'limit_key' has no effect without 'limit'"),
        ({"rate_key": key}, "'rate_key' has no effect without 'rate'"),
        ({"debounce": 2}, "'debounce' has no effect without 'unique_key'"),
        ({"unique_key": key, "debounce_max": 2}, "'debounce_max' has no effect without 'deboun"),
        ({"unique_key": key, "merge": key}, "'merge' has no effect without 'debounce'"),
        ({"unique_key": key, "debounce": 0}, "expected 'debounce' to be a positive number"),
        (
            {"unique_key": key, "debounce": 2, "debounce_max": 1},
            "expected 'debounce_max' to be at least 'debounce', 2, got: 1",
        ),
        ({"unique_key": key, "debounce": 2, "delay": 1}, "'debounce' and 'delay' exclude each"),
        ({"unique_until": "begun"}, "expected 'unique_until' to be 'started' or 'finished'"),
        ({"unique_for": -1}, "expected 'unique_for' to be a positive number"),
        (
            {"unique_for": 5, "unique_until": "started"},
            "'unique_until' and 'unique_for' exclude each other. Remove one.",
        ),
        ({"debounse": 2}, "Did you mean 'debounce'"),
        ({"limits": 2}, "Did you mean 'limit'"),
        ({"rate_limit": "1/s"}, "Did you mean 'rate'"),
        ({"limit": 2, "limitkey": key}, "Did you mean 'limit_key'"),
    ],
)
def test_a_wrong_limit_is_refused_when_it_is_registered(
    members: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        AsyncHooks().register(declared(**members))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", 2), ("rate", "1/s"), ("unique_until", "started"), ("unique_for", 60)],
)
def test_limits_need_an_outbox(name: str, value: Any) -> None:
    hooks = AsyncHooks(plain_app())
    with pytest.raises(OutboxRequired, match=f"'{name}' of task 'shop.Task' needs an outbox"):
        hooks.register(declared(**{name: value}))


# -- what a launch becomes


class Shop:
    """An app whose outbox nobody relays, unless the test does."""

    def __init__(self, outbox: str = "sqlite:///outbox.db", db: Any = None, **config: Any) -> None:
        self.app: Flask = plain_app(ASYNC_HOOKS_OUTBOX=outbox, ASYNC_HOOKS_RELAY=False, **config)
        self.hooks = AsyncHooks(db=db)
        if db is not None:
            db.init_app(self.app)
        self.hooks.init_app(self.app)

    @property
    def store(self) -> Any:
        return state_of(self.app).store

    def rows(self) -> list[Any]:
        with self.app.app_context():
            found: list[Any] = self.hooks.outbox.rows()[::-1]
            return found

    def claim(self) -> list[Any]:
        claimed, _ = self.store.claim(Claim("process", new_id()), KINDS, 10)
        return list(claimed)


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.store.database.engine.dispose()


@pytest.fixture
def joined() -> Iterator[Shop]:
    made = Shop("app", SQLAlchemy(), SQLALCHEMY_DATABASE_URI="sqlite:///app.db")
    with made.app.app_context():
        made.rows()  # Makes the tables, which nobody can while the app writes.
        yield made
        made.store.database.engine.dispose()


def test_what_has_a_limit_is_held_and_shown_as_available(shop: Shop) -> None:
    task = shop.hooks.register(declared(limit=2, limit_key=key))
    with shop.app.app_context():
        ids = [task.dispatch({"key": name}) for name in ("a", "b", "a")]
        assert shop.hooks.outbox.counts()["available"] == 3
        delivery = shop.hooks.outbox.get(ids[0])
    assert delivery is not None
    assert delivery.state == "available"
    rows = shop.rows()
    assert [row.state for row in rows] == ["held"] * 3
    assert (rows[0].limit_key == rows[2].limit_key, rows[0].limit_key != rows[1].limit_key) == (
        True,
        True,
    )


def test_who_has_no_key_has_no_limit(shop: Shop) -> None:
    task = shop.hooks.register(declared(limit=2, limit_key=lambda self, data: None))
    with shop.app.app_context():
        task.dispatch({})
    assert [row.state for row in shop.rows()] == ["available"]


def test_a_key_that_is_no_text_is_refused(shop: Shop) -> None:
    task = shop.hooks.register(declared(limit=2, limit_key=lambda self, data: 7))
    with (
        shop.app.app_context(),
        pytest.raises(DataError, match=r"The limit_key of task 'shop.Task' is no text: 7"),
    ):
        task.dispatch({})


def test_a_job_takes_all_of_them_without_self(shop: Shop) -> None:
    @shop.hooks.job(
        limit=1,
        limit_key=lambda data: data["key"],
        rate="5/s",
        burst=2,
        rate_key=lambda data: data["key"],
        unique_key=lambda data: data["key"],
        debounce=5,
        debounce_max=9,
        merge=lambda old, new: {"key": "a", "n": old["n"] + new["n"]},
    )
    def add(key: str, n: int) -> None: ...

    with shop.app.app_context():
        ids = {add.enqueue(key="a", n=number) for number in (1, 2, 3)}
    [row] = shop.rows()
    assert ids == {row.id}
    assert json.loads(row.body) == {"key": "a", "n": 6}
    assert row.state == "held"
    assert row.limit_key != row.rate_key


def test_a_merge_that_fails_lets_the_newer_data_run(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def merge(self: AsyncTask, old: Any, new: Any) -> Any:
        raise ValueError("no")

    task = shop.hooks.register(declared(unique_key=key, debounce=5, merge=merge))
    with shop.app.app_context():
        for number in (1, 2):
            task.dispatch({"n": number})
    assert [json.loads(row.body) for row in shop.rows()] == [{"n": 2}]
    assert "The merge of task 'shop.Task' failed; the newer data runs." in caplog.text


def test_a_time_to_run_and_a_debounce_exclude_each_other(shop: Shop) -> None:
    task = shop.hooks.register(declared(unique_key=key, debounce=5))
    with shop.app.app_context(), pytest.raises(ConfigError, match="'debounce' exclude each other"):
        task.dispatch({}, delay=5)


def test_the_loser_within_a_cooldown_gets_the_winners_id(shop: Shop) -> None:
    task = shop.hooks.register(declared(unique_key=key, unique_for=60))
    with shop.app.app_context():
        winner = task.dispatch({})
        assert shop.hooks.outbox.cancel(winner)
        second = task.dispatch({})
        assert second != winner  # A cancelled one's key is free.
        assert task.dispatch({}) == second


def test_without_limits_a_launch_a_claim_and_an_end_take_as_many_statements_as_ever(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = shop.hooks.register(declared())
    with shop.app.app_context():
        task.dispatch({})  # Makes the tables.
    counted: list[str] = []
    execute, say = Connection.execute, Connection.say

    def counting(self: Connection, statement: Any, values: Any = None) -> Any:
        counted.append("statement")
        return execute(self, statement, values)

    def saying(self: Connection, sql: str) -> None:
        counted.append(sql)
        say(self, sql)

    monkeypatch.setattr(Connection, "execute", counting)
    monkeypatch.setattr(Connection, "say", saying)

    def counts(step: Any) -> int:
        counted.clear()
        step()
        return len(counted)

    store = shop.store
    with shop.app.app_context():
        assert counts(lambda: task.dispatch({})) == 1
    claimed: list[Any] = []
    # The heads of the queues (3), BEGIN, the paused ones, the due ones, the claim, COMMIT.
    assert counts(lambda: claimed.extend(shop.claim())) == 8
    assert counts(lambda: store.release([claimed[1]])) == 3
    assert counts(lambda: store.begin(claimed[0], None)) == 1
    assert counts(lambda: store.record(claimed[0], Ending(DeliveryState.COMPLETED))) == 1


# -- in the app's own transactions


def test_a_debounced_launch_is_made_after_the_commit(joined: Shop) -> None:
    task = joined.hooks.register(declared(unique_key=key, debounce=5))
    session: Any = joined.app.extensions["sqlalchemy"].session
    session.execute(text("CREATE TABLE orders (number INTEGER)"))
    session.commit()
    session.execute(text("INSERT INTO orders VALUES (1)"))
    for number in (1, 2):
        task.dispatch({"n": number})
    assert joined.rows() == []
    session.commit()
    assert [json.loads(row.body) for row in joined.rows()] == [{"n": 2}]
    session.execute(text("INSERT INTO orders VALUES (2)"))
    task.dispatch({"n": 3})
    session.rollback()
    assert [json.loads(row.body) for row in joined.rows()] == [{"n": 2}]


def test_what_waits_may_begin_before_the_commit_and_then_the_launch_is_new(joined: Shop) -> None:
    """It would have been lost to one that has read what was there before."""
    task = joined.hooks.register(declared(unique_key=key, unique_until="started"))
    session: Any = joined.app.extensions["sqlalchemy"].session
    first = task.dispatch({"n": 1})
    session.execute(text("CREATE TABLE orders (number INTEGER)"))
    session.commit()
    assert task.dispatch({"n": 2}) == first
    assert [each.id for each in joined.claim()] == [first]
    session.execute(text("INSERT INTO orders VALUES (1)"))
    session.commit()
    assert [json.loads(row.body)["n"] for row in joined.rows()] == [1, 2]


# -- what is said of them


def promoted(shop: Shop) -> None:
    """Promote as a relay does before it claims."""
    store, state = shop.store, state_of(shop.app)
    limits = partial(limits_by_name, state)
    Promotion(store.database, store.audiences, store.now, limits).sweep("", KINDS)


def test_why_names_the_limit_and_for_whom_it_is_full(shop: Shop) -> None:
    task = shop.hooks.register(declared(limit=2, limit_key=key))
    with shop.app.app_context():
        ids = [task.dispatch({"key": "account 7"}) for _ in range(3)]
        outbox = shop.hooks.outbox
        assert outbox.why(ids[2]) == "It is due, and no process relays."
        promoted(shop)
        assert outbox.why(ids[2]) == "It is held: 2 of 2 run for key 'account 7'."
        assert outbox.why(ids[0]) == "It is due, and no process relays."


def test_why_says_when_the_turn_comes_under_a_rate(shop: Shop) -> None:
    task = shop.hooks.register(declared(rate="1/h"))
    with shop.app.app_context():
        ids = [task.dispatch({}) for _ in range(3)]
        promoted(shop)
        outbox, now = shop.hooks.outbox, shop.store.now()
        hours = [in_words(moment(now + each * 3600))[:13] for each in (1, 2)]
        for each, hour in zip(ids[1:], hours, strict=True):
            said = outbox.why(each)
            assert said.startswith(f"It is held: 1/h begin, and its turn comes at {hour}")


def test_what_waits_for_a_limit_is_not_overdue(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    task = shop.hooks.register(declared(limit=1))
    with shop.app.app_context():
        for _ in range(2):
            task.dispatch({})
        promoted(shop)
        shop.claim()
        real = shop.store.now()
        monkeypatch.setattr(shop.hooks.outbox, "_now", lambda: real + 3600)
        assert shop.hooks.outbox.overdue() is None


def test_what_nobody_promotes_is_overdue(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    task = shop.hooks.register(declared(limit=1))
    with shop.app.app_context():
        task.dispatch({})
        real = shop.store.now()
        monkeypatch.setattr(shop.hooks.outbox, "_now", lambda: real + 3600)
        health = shop.hooks.outbox.health()
    assert health.problem == "A delivery has been due for 3600 s. No process relays."
