"""What joined transactions promise of deliveries, on every database and with a plain session."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from async_hooks import AsyncTask
from async_hooks.verdict import Outcome, Verdict
from tests.contracts.joined import Runner
from tests.support.joined_shop import READS, Shop, in_threads, losses_heard


def test_a_unique_key_holds_within_a_transaction_and_beyond_its_commit(shop: Runner) -> None:
    ids: list[str] = []

    def view(number: int, end: str) -> None:
        shop.order(number)
        ids.extend(shop.task.dispatch({"n": n}, unique_key=str(n)) for n in (1, 1, 2))
        getattr(shop.session, end)()

    for number, end in enumerate(("rollback", "commit", "commit")):
        shop.visit(partial(view, number, end))
    undone, committed, later = ids[:3], ids[3:6], ids[6:]
    assert undone[0] == undone[1] != committed[0] == committed[1] != committed[2]
    assert later == committed
    assert shop.sent() == [1, 2]


def test_a_unique_key_taken_after_the_transaction_began_breaks_no_commit(shop: Runner) -> None:
    def view() -> None:
        READS["query"](shop)
        shop.task.dispatch({"n": 1}, unique_key="key")
        in_threads(lambda: shop.dispatch(unique_key="key"))
        shop.order(2)
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders()) == ([1], [2])


def fail(error: Exception) -> object:
    raise error


def fail_to_commit(session: Any) -> None:
    raise LookupError("not today")


#: Where a receiver raises this, the fault is its own.
BUSY = OperationalError("x", None, sqlite3.OperationalError("database is locked"))

#: What a first attempt does when it has written: its outcome and error, and what is there then.
ENDINGS: dict[str, tuple[Callable[[Runner], object], Outcome, str, bool]] = {
    "returns": (lambda shop: None, Outcome.COMPLETED, "None", True),
    "commits": (lambda shop: shop.session.commit(), Outcome.COMPLETED, "None", True),
    "commits and raises": (
        lambda shop: (shop.session.commit(), fail(LookupError())),
        Outcome.FAILED,
        "LookupError",
        True,
    ),
    "raises": (lambda shop: fail(BUSY), Outcome.FAILED, "OperationalError", False),
    "repeats what is unique": (lambda shop: shop.order(0), Outcome.FAILED, "Integrity", False),
    "breaks a commit": (Shop.break_at_commit, Outcome.FAILED, "IntegrityError", False),
    "is refused": (
        lambda shop: event.listen(shop.session(), "before_commit", fail_to_commit),
        Outcome.FAILED,
        "not today",
        False,
    ),
    "is stale": (lambda shop: None, Outcome.REPLAYED, "Another attempt", False),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_an_attempt_wrote_and_launched_is_there_iff_it_or_its_completion_committed(
    shop: Runner, ending: str
) -> None:
    end, outcome, error, is_there = ENDINGS[ending]
    attempts, raised = count(1), list[int]()
    shop.write("INSERT INTO orders (number) VALUES (0)")

    def receiver(sender: Any, *, n: int) -> None:
        attempt = next(attempts)
        if ending == "is stale":
            shop.steal()
        shop.order(attempt)
        shop.task.dispatch({"n": 10 * attempt}, delay=60)
        if attempt == 1:
            raised.append(10)
            end(shop)
            raised.clear()

    shop.receive(receiver)
    shop.dispatch()
    with losses_heard() as losses:
        [verdict] = shop.work()
    assert (verdict.outcome, verdict.is_recorded) == (outcome, outcome is Outcome.COMPLETED)
    assert error in str(verdict.error)
    there, waiting = ([1], {10: ("available", 0)}) if is_there else ([], {})
    state = {Outcome.FAILED: "available", Outcome.REPLAYED: "executing"}.get(outcome, "completed")
    assert (shop.orders(), shop.states()) == ([0, *there], {1: (state, 1), **waiting})
    assert losses() == ([] if is_there else raised)  # Who raised forgot to roll back.
    if state == "available":
        shop.work()
        assert shop.orders() == [0, *there, 2]
        assert shop.states() == {1: ("completed", 2), **waiting, 20: ("available", 0)}


@pytest.mark.parametrize("is_stale", [False, True])
def test_children_are_added_with_the_completion_of_their_parent(
    shop: Runner, is_stale: bool
) -> None:
    for name in ("one", "two"):
        shop.receive(lambda sender, *, n: None, name)

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        if is_stale:
            shop.steal()
        shop.order(1)
        self.send(**data)

    shop.task.run_action = run_action  # type: ignore[method-assign]
    shop.dispatch()
    shop.work()
    children = [(each.receiver, each.state) for each in shop.deliveries() if each.parent_id]
    expected = [] if is_stale else [("one", "available"), ("two", "available")]
    assert (sorted(children), shop.orders()) == (expected, [] if is_stale else [1])


def test_the_last_child_frees_the_unique_key_whatever_its_session_saw(shop: Runner) -> None:
    verdicts: list[Verdict] = []

    def one(sender: Any, *, n: int) -> None:
        READS["query"](shop)  # From here on, MariaDB shows what was there before.
        in_threads(lambda: verdicts.append(shop.run(children["two"])))

    shop.receive(one, "one")
    shop.receive(lambda sender, *, n: None, "two")
    first = shop.dispatch(unique_key="key")
    children = {envelope.receiver: envelope for envelope in shop.claim()}
    verdicts.append(shop.run(children["one"]))
    assert [verdict.is_recorded for verdict in verdicts] == [True, True]
    assert shop.dispatch(unique_key="key") != first


def test_a_database_that_is_busy_at_the_end_keeps_nothing_and_burns_no_attempt(
    tmp_path: Path, action: str
) -> None:
    options = {"connect_args": {"timeout": 0.05}}
    shop = Runner(f"sqlite:///{tmp_path}/app.db", action, SQLALCHEMY_ENGINE_OPTIONS=options)
    locks = ["BEGIN IMMEDIATE"]
    shop.dispatch()
    with shop.engine.connect() as other:

        def receiver(sender: Any, *, n: int) -> None:
            shop.order(n)
            if locks:
                other.exec_driver_sql(locks.pop())

        shop.receive(receiver)
        [verdict] = shop.work(then=other.rollback)
    assert verdict.outcome is Outcome.UNWRITTEN
    assert (shop.orders(), shop.states()) == ([], {1: ("available", 0)})
    with shop.app.app_context():
        assert shop.hooks.outbox.retry(shop.hooks.outbox.find()[0].id)
    shop.work()
    assert (shop.orders(), shop.states()) == ([1], {1: ("completed", 1)})
    shop.engine.dispose()
