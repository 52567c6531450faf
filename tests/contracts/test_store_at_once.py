"""What several connections do at the same time comes out as if one had gone first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select

from async_hooks.envelope import Envelope
from async_hooks.outbox import purging
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.schema import deliveries
from tests.contracts.outboxes import NOW, Outbox, Steps, Within, an_outbox, envelope, together
from tests.support.databases import KINDS

SERVERS = [kind for kind in KINDS if kind != "sqlite"]

Step = Callable[[Steps, Envelope], object]


@pytest.fixture(scope="module", params=KINDS)
def tables(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Outbox]:
    with an_outbox(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def complete(steps: Steps, running: Envelope) -> object:
    return steps.complete(running)


def discard(steps: Steps, running: Envelope) -> object:
    return steps.fail(running)


def cancel(steps: Steps, running: Envelope) -> object:
    return steps.cancel(running.id)


# -- claiming


@pytest.mark.parametrize("relays", [2, 8])
@pytest.mark.parametrize("is_own", [False, True], ids=["app", "own"])
def test_each_row_is_claimed_by_one_and_none_is_left(
    outbox: Outbox, relays: int, is_own: bool
) -> None:
    added = {envelope().id for _ in range(200)}
    outbox.add(*(envelope(id=each) for each in added))

    def claiming() -> list[Envelope]:
        claimed: list[Envelope] = []
        own = Steps(outbox.another(patience=30, is_own=is_own))
        # What others have locked just now is skipped: an empty claim is not yet the end.
        while outbox.queries.count(["available"]):
            claimed += own.claim(7)
        own.database.engine.dispose()
        return claimed

    claimed = [each for found in together(*[claiming] * relays) for each in found]
    assert len(claimed) == len(added)
    assert {each.id for each in claimed} == added
    held = {row["id"]: row["lease"] for row in outbox.rows()}
    assert held == {each.id: each.lease for each in claimed}


def test_a_claim_passes_by_what_another_is_claiming(outbox: Outbox) -> None:
    first, second = outbox.added(), outbox.added()

    def claim_one(steps: Steps) -> list[str]:
        return [each.id for each in steps.claim(1)]

    assert outbox.meanwhile(claim_one, claim_one) == [second.id]
    assert outbox.claim() == []
    assert outbox.state(first.id) == "executing"


def test_what_is_cancelled_while_it_is_claimed_stays_cancelled(outbox: Outbox) -> None:
    added = outbox.added()

    claimed: list[Envelope] = []
    outbox.meanwhile(lambda steps: claimed.extend(steps.claim(1)), lambda c: cancel(c, added))
    assert outbox.state(added.id) == "cancelled"
    assert not outbox.begin(claimed[0])


# -- an attempt


@pytest.mark.parametrize("second", [complete, discard, cancel])
@pytest.mark.parametrize("first", [complete, discard, cancel])
def test_of_two_endings_the_first_counts(outbox: Outbox, first: Step, second: Step) -> None:
    running = outbox.begun()
    assert not outbox.meanwhile(lambda c: first(c, running), lambda c: second(c, running))
    ends = {complete: "completed", discard: "discarded", cancel: "cancelled"}
    assert outbox.state(running.id) == ends[first]  # type: ignore[index]


def test_of_many_who_begin_an_attempt_one_does(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    assert sorted(together(*[lambda: outbox.begin(claimed)] * 8)) == [False] * 7 + [True]
    assert outbox.row(claimed.id)["attempts"] == 1


def test_of_many_who_complete_an_attempt_one_does(outbox: Outbox) -> None:
    running = outbox.begun()
    child = running.for_receiver("one")
    done = together(*[lambda: outbox.complete(running, additions=[child])] * 8)
    assert sorted(done) == [False] * 7 + [True]
    assert len(outbox.rows()) == 2


# -- unique keys


def test_of_two_who_want_a_unique_key_the_second_learns_the_firsts_id(outbox: Outbox) -> None:
    winner, loser = envelope(), envelope()
    lost = outbox.meanwhile(
        lambda c: c.add(winner, unique_key="key"), lambda c: c.add(loser, unique_key="key")
    )
    assert lost == {loser.id: winner.id}


def test_of_many_who_want_a_unique_key_one_wins(outbox: Outbox) -> None:
    wanting = [envelope() for _ in range(8)]
    lost = together(*(lambda each=each: outbox.add(each, unique_key="key") for each in wanting))
    [row] = outbox.rows()
    losers = [each.id for each in wanting if each.id != row["id"]]
    assert [found for found in lost if found] == [{each: row["id"]} for each in losers]


def test_a_unique_key_goes_to_who_waits_for_its_delivery_to_finish(outbox: Outbox) -> None:
    running, waiting = outbox.begun(unique_key="key"), envelope()
    lost = outbox.meanwhile(
        lambda c: complete(c, running), lambda c: c.add(waiting, unique_key="key")
    )
    # It came before the other had finished, or after.
    assert lost in ({}, {waiting.id: running.id})
    assert (len(outbox.rows()) == 2) is (lost == {})


@pytest.mark.parametrize("second", [complete, discard, cancel])
@pytest.mark.parametrize("first", [complete, discard, cancel])
def test_of_two_last_children_at_once_one_closes_their_parent(
    outbox: Outbox, first: Step, second: Step
) -> None:
    for _ in range(3):
        parent = outbox.begun(unique_key="key", finishes=True)
        one, two = outbox.split(parent, "one", "two")
        assert all(together(lambda: first(outbox, one), lambda: second(outbox, two)))  # noqa: B023
        assert outbox.key(parent.id) is None
        assert len(outbox.finishes(parent)) == 1


def test_a_child_that_finishes_while_its_parent_is_cancelled_leaves_no_key(outbox: Outbox) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    outbox.meanwhile(lambda c: complete(c, one), lambda c: cancel(c, parent))
    assert outbox.key(parent.id) is None
    assert outbox.state(two.id) == "cancelled"


# -- an app's own engine, at the isolation that the server sets


@pytest.fixture
def app_database(outbox: Outbox) -> Iterator[Database]:
    """The database as an app's engine has it: at the server's own isolation."""
    engine = create_engine(outbox.url)
    yield Database(lambda: engine)
    engine.dispose()


@contextmanager
def having_read(outbox: Outbox, database: Database) -> Iterator[Steps]:
    """Give a transaction of the app's session in which a receiver has read."""
    with database.engine.connect() as connection:
        connection.execute(select(func.count()).select_from(deliveries))
        yield Steps(Within(database.within(connection), database.engine))
        connection.commit()


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_the_last_child_closes_its_parent_whatever_its_transaction_saw(
    outbox: Outbox, app_database: Database
) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    with having_read(outbox, app_database) as steps:
        outbox.complete(one)
        assert steps.complete(two)
    Steps(app_database).store.close(parent.id)
    assert (outbox.key(parent.id), outbox.state(parent.id)) == (None, "completed")


@pytest.mark.parametrize("tables", SERVERS, indirect=True)
def test_a_transaction_that_has_read_learns_the_winner_of_a_unique_key(
    outbox: Outbox, app_database: Database
) -> None:
    loser = envelope()
    with having_read(outbox, app_database) as steps:
        winner = outbox.added(unique_key="key")
        lost = steps.add(loser, unique_key="key")
    assert lost == {loser.id: winner.id}


# -- looking after them


def test_two_purges_at_once_delete_each_row_once(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "BATCH", 5)
    for _ in range(8):
        outbox.complete(outbox.begun())
    # Of the rows that the first has not locked, the second deletes as many as it finds free.
    second = outbox.meanwhile(lambda c: c.purge(), lambda c: c.purge())
    assert second + outbox.purge() == 3
    assert outbox.rows() == []


def test_a_purge_and_a_retry_at_once_leave_it_whole_or_gone(outbox: Outbox) -> None:
    running = outbox.begun()
    outbox.complete(running)
    purged = outbox.meanwhile(lambda c: c.retry(running.id), lambda c: c.purge())
    assert [row["state"] for row in outbox.rows()] == ["available"]
    assert purged == 0


def test_two_who_pause_a_queue_at_once_both_have(outbox: Outbox) -> None:
    def pause(steps: Steps) -> None:
        steps.queries.pause("mail")

    outbox.meanwhile(pause, pause)
    assert outbox.queries.paused() == ["mail"]


def test_two_who_rescue_a_process_at_once_count_one_crash(outbox: Outbox) -> None:
    running = outbox.begun()
    [orphan] = outbox.claimed_by("process")

    def record_crash(steps: Steps) -> object:
        return steps.fail(orphan.envelope, NOW, crashed=True)

    assert outbox.meanwhile(record_crash, record_crash) is False
    row = outbox.row(running.id)
    assert (row["state"], row["attempts"], row["crashes"]) == ("available", 1, 1)
