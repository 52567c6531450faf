"""Many launches at once: as single ones in all but the time they take, and all or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker

from async_hooks import AsyncHooks, AsyncTask, DataError, OutboxRequired
from async_hooks.envelope import Envelope
from async_hooks.outbox.sql.connections import Connection
from async_hooks.signals import task_launched
from async_hooks.state import state_of
from async_hooks.worker.worker import Options, Work
from tests.support.apps import make_app, make_task, plain_app
from tests.support.databases import KINDS, fresh_database

#: Data whose JSON has in it whatever may stand between two of them.
ODD: list[dict[str, Any]] = [
    {},
    {"a": [1, {"b": None}, 2.5], "c": {}},
    {"text": ",\nNaN,\n", "é": "'%s\\ \x00", "NaN": ["NaN", ",\\nNaN,\\n"]},
    {"a": [[], [{}, {}]]},
]


class Shop:
    """An app with an outbox that nobody relays, and the ids that its listeners are told of."""

    def __init__(self, url: str, action: str) -> None:
        self.app, self.hooks = make_app(
            ASYNC_HOOKS_TRANSPORT="in_process", ASYNC_HOOKS_OUTBOX=url, ASYNC_HOOKS_RELAY=False
        )
        self.outbox = state_of(self.app).outbox
        self.outbox.create()
        self.action = action
        self.told: list[str] = []
        task_launched.connect(self.note, self.app)

    def note(self, sender: Flask, *, envelope: Envelope) -> None:
        self.told.append(envelope.id)

    def rows(self) -> list[dict[str, Any]]:
        return [row._asdict() for row in reversed(self.outbox.rows())]


@pytest.fixture(params=KINDS)
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, action: str) -> Iterator[Shop]:
    with fresh_database(request.param, tmp_path) as url:
        shop = Shop(url, action)
        with shop.app.app_context():
            yield shop
        state: Any = state_of(shop.app)
        state.store.database.engine.dispose()


@pytest.fixture
def shop(tmp_path: Path, action: str) -> Iterator[Shop]:
    shop = Shop(f"sqlite:///{tmp_path / 'outbox.db'}", action)
    with shop.app.app_context():
        yield shop


def same(row: dict[str, Any]) -> dict[str, Any]:
    own = ("id", "body", "created_at", "run_at")
    return {key: value for key, value in row.items() if key not in own}


def test_their_rows_are_those_of_single_launches(anywhere: Shop) -> None:
    task = make_task(anywhere.hooks, anywhere.action, queue="mail", ref=lambda self, data: "r")
    options: Any = {"priority": 3, "delay": 60, "user": {"id": 7}}
    for data in ODD:
        task.dispatch(data, **options)
    ids = task.dispatch_many(iter(ODD), **options)
    single, many = anywhere.rows()[: len(ODD)], anywhere.rows()[len(ODD) :]
    assert [row["id"] for row in many] == ids == anywhere.told[len(ODD) :]
    assert [row["body"] for row in many] == [row["body"] for row in single]
    assert list(map(same, many)) == list(map(same, single))
    assert {row["run_at"] - row["created_at"] > 59 for row in many} == {True}
    assert [anywhere.outbox.get(each).data for each in ids] == ODD


def test_they_are_one_transaction_and_one_call_of_the_driver(
    anywhere: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(anywhere.hooks, anywhere.action)
    task.dispatch({})  # What is asked once, as for the clock, is asked.
    done: list[Any] = []
    add, say = Connection.add, Connection.say

    def note_add(connection: Connection, statement: Any, rows: Any) -> None:
        done.append(len(rows))
        add(connection, statement, rows)

    def note_say(connection: Connection, sql: str) -> None:
        done.append(sql)
        say(connection, sql)

    monkeypatch.setattr(Connection, "add", note_add)
    monkeypatch.setattr(Connection, "say", note_say)
    monkeypatch.setattr(Connection, "execute", None)
    task.dispatch_many({"n": n} for n in range(1000))
    assert done == [done[0], 1000, "COMMIT"]
    monkeypatch.undo()
    assert len(anywhere.rows()) == 1001


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"n": object()}, "Item 2: data['n'] is a object|Item 2: data['n'] is "),
        ({"n": float("nan")}, "Item 2: data['n'] is "),
        ({1: 1}, "Item 2: data has the key 1; JSON keys are strings"),
        ("text", "Item 2: expected a task's data to be a dict, got: str"),
        ({"n": 10**5000}, "Item 2: 'data' can't be written as JSON"),
        ({"n": "x" * 10**7}, "Item 2: 'data' is 10000008 bytes of JSON"),
        ({"ref": "x" * 256}, "Item 2: The ref of task "),
        ({"key": 1}, "Item 2: The unique_key of task "),
    ],
    ids=["object", "nan", "key", "no dict", "number", "length", "ref", "unique key"],
)
def test_if_one_can_not_travel_none_does_and_the_error_names_its_index(
    shop: Shop, bad: Any, why: str
) -> None:
    task = make_task(
        shop.hooks,
        shop.action,
        ref=lambda self, data: data.get("ref"),
        unique_key=lambda self, data: data.get("key"),
    )
    with pytest.raises(DataError) as raised:
        task.dispatch_many([{}, {"n": 1}, bad, {}, bad])
    assert str(raised.value).startswith(why.rpartition("|")[2])
    assert (shop.rows(), shop.told) == ([], [])


def test_an_exception_of_the_users_is_left_as_it_is_with_a_note(shop: Shop) -> None:
    def ref(task: AsyncTask, data: dict[str, Any]) -> str:
        return str(data["ref"])

    task = make_task(shop.hooks, shop.action, ref=ref)
    with pytest.raises(KeyError) as raised:
        task.dispatch_many([{"ref": "a"}, {}])
    assert raised.value.__notes__ == ["It was raised for item 1 of dispatch_many."]
    assert (shop.rows(), shop.told) == ([], [])


def test_none_is_none(shop: Shop) -> None:
    task = make_task(shop.hooks, shop.action)
    assert task.dispatch_many([]) == []
    assert shop.rows() == []


def test_of_equal_unique_keys_the_winners_ids_are_returned(anywhere: Shop) -> None:
    task = make_task(anywhere.hooks, anywhere.action, unique_key=lambda self, data: data.get("key"))
    before = task.dispatch({"key": "b"})
    ids = task.dispatch_many([{"key": "a"}, {}, {"key": "b"}, {"key": "a"}, {}])
    assert ids[2:4] == [before, ids[0]]
    assert len(set(ids)) == 4
    assert {row["id"] for row in anywhere.rows()} == {*ids} == {*anywhere.told}
    again = task.dispatch_many([{}, {}], unique_key="a of mine")
    assert again[0] == again[1]


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_apps_session_they_wait_for_its_commit(
    kind: str, tmp_path: Path, action: str
) -> None:
    with fresh_database(kind, tmp_path) as url:
        engine = create_engine(url)
        session = scoped_session(sessionmaker(engine))
        app = plain_app(ASYNC_HOOKS_OUTBOX="app", ASYNC_HOOKS_RELAY=False)
        hooks = AsyncHooks(app, session=session)
        task = make_task(hooks, action, unique_key=lambda self, data: data.get("key"))
        outbox = state_of(app).outbox
        outbox.create()
        assert (
            outbox.counts()["available"] == 0
        )  # Else that would look for the tables while locked.
        with app.app_context():
            session.execute(text("CREATE TABLE visits (n INTEGER)"))
            session.commit()
            for end in (session.rollback, session.commit):
                session.execute(text("INSERT INTO visits VALUES (1)"))
                ids = task.dispatch_many([{"n": 1}, {"key": "a"}, {"key": "a"}])
                assert (ids[1] == ids[2], ids[0] == ids[1]) == (True, False)
                assert outbox.counts()["available"] == 0
                end()
            assert {row.id for row in outbox.rows()} == {*ids}
            session.remove()
        state: Any = state_of(app)
        state.store.database.engine.dispose()
        engine.dispose()


def test_in_a_run_they_go_with_its_completion_and_count_as_one_launch(
    tmp_path: Path, action: str
) -> None:
    app, hooks = make_app(
        ASYNC_HOOKS_TRANSPORT="in_process",
        ASYNC_HOOKS_OUTBOX=f"sqlite:///{tmp_path / 'outbox.db'}",
        ASYNC_HOOKS_RELAY=False,
        ASYNC_HOOKS_MAX_LAUNCHES=2,
    )
    outbox, seen = state_of(app).outbox, []

    def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
        if not data:
            type(task).dispatch_many([{"n": n} for n in range(5)])
            seen.append(outbox.counts()["available"])
            with pytest.raises(DataError):
                type(task).dispatch_many([{"n": 1}, {"n": object()}])

    task = make_task(hooks, action, run_action=run_action)
    with app.app_context():
        first = task.dispatch({})
    Work(app, Options(name="w1", once=True, quota=1)).run()
    assert seen == [0]
    assert outbox.get(first).state == "completed", outbox.get(first).error
    assert outbox.counts()["available"] == 5


def test_without_an_outbox_each_is_handed_to_memory(action: str) -> None:
    app, hooks = make_app(ASYNC_HOOKS_TRANSPORT="loopback")
    task = make_task(hooks, action)
    with hooks.testing(app) as recorded, app.app_context():
        ids = task.dispatch_many(ODD)
        with pytest.raises(DataError, match="Item 1"):
            task.dispatch_many([{}, {"n": object()}])
        with pytest.raises(OutboxRequired):
            task.dispatch_many(ODD, delay=1)
    assert [(each.id, each.data) for each in recorded.envelopes] == [*zip(ids, ODD, strict=True)]


def test_a_jobs_arguments_are_checked_before_any_is_launched(shop: Shop) -> None:
    @shop.hooks.job(name=shop.action)
    def add(left: int, right: int = 0) -> None: ...

    with pytest.raises(TypeError, match=r"^Item 1: Job .*missing a required argument: 'left'"):
        add.dispatch_many([{"left": 1}, {"right": 2}])
    assert shop.rows() == []
    ids = add.dispatch_many([{"left": 1}, {"left": 1, "right": 2}], queue="sums")
    assert [(row["id"], row["queue"]) for row in shop.rows()] == [(each, "sums") for each in ids]
