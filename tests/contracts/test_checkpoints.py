"""What a checkpoint keeps and what progress shows, on every database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from async_hooks.delivery import DeliveryState, Ending
from async_hooks.envelope import Envelope
from async_hooks.outbox.checkpoints import last_moved, shown_last
from async_hooks.outbox.sql.schema import deliveries, progress
from tests.contracts.outboxes import NOW, Outbox, envelope

STEP = '{"done":1,"total":2,"text":null}'


def checkpoint(
    outbox: Outbox,
    running: Envelope,
    cursor: str = "1",
    shown: str | None = None,
    launched: Sequence[Envelope] = (),
) -> bool | None:
    return outbox.store.checkpoint(running, cursor, shown, launched)


def show(outbox: Outbox, running: Envelope, text: str = STEP, at: float = NOW) -> bool:
    return outbox.store.write_progress([(running, text, at)])


def shown(outbox: Outbox) -> list[Any]:
    return outbox.database.execute(select(progress)).rows


def again(outbox: Outbox) -> Envelope:
    """Return the delivery that is due, its next attempt begun."""
    [found] = outbox.claim()
    assert outbox.begin(found)
    return found


def test_it_keeps_the_cursor_for_the_next_attempt(outbox: Outbox) -> None:
    running = outbox.begun()
    assert outbox.store.running(running).cursor is None
    assert checkpoint(outbox, running, '{"row":7}', STEP) is False
    assert outbox.fail(running, NOW)
    running = again(outbox)
    assert outbox.store.running(running).cursor == '{"row":7}'
    assert outbox.row(running.id)["progress"] == STEP


def test_it_adds_what_was_launched_once(outbox: Outbox) -> None:
    running, launched = outbox.begun(), envelope()
    for cursor in ("1", "2"):
        assert checkpoint(outbox, running, cursor, None, [launched]) is False
    assert [row["id"] for row in outbox.rows()] == [running.id, launched.id]


OTHERS: dict[str, Callable[[Outbox, Envelope], object]] = {
    "cancelled": lambda outbox, running: outbox.cancel(running.id),
    "completed": lambda outbox, running: outbox.complete(running),
    "released": lambda outbox, running: outbox.undo(running),
    "replaced": lambda outbox, running: (outbox.fail(running, NOW), again(outbox)),
}


@pytest.mark.parametrize("end", OTHERS.values(), ids=OTHERS)
def test_once_the_delivery_is_not_its_own_it_keeps_nothing(
    outbox: Outbox, end: Callable[[Outbox, Envelope], object]
) -> None:
    running = outbox.begun()
    assert checkpoint(outbox, running) is False
    end(outbox, running)
    before = outbox.rows()
    assert checkpoint(outbox, running, "2", STEP, [envelope()]) is None
    assert show(outbox, running)
    assert (outbox.rows(), shown(outbox)) == (before, [])
    assert outbox.store.running(running) is None
    assert outbox.store.idle_for(running) is None


def test_before_the_attempt_began_it_keeps_nothing(outbox: Outbox) -> None:
    assert checkpoint(outbox, outbox.claimed()) is None


def test_it_tells_that_the_delivery_is_paused_and_keeps_the_cursor(outbox: Outbox) -> None:
    running = outbox.begun()
    outbox.database.execute(update(deliveries).values(paused=True))
    assert checkpoint(outbox, running, "2") is True
    assert outbox.row(running.id)["cursor"] == "2"


@pytest.mark.parametrize(("cursor", "before"), [("1", (2, 1)), ("2", (0, 0)), ("null", (0, 0))])
def test_another_cursor_than_at_the_last_failure_counts_failures_and_crashes_anew(
    outbox: Outbox, cursor: str, before: tuple[int, int]
) -> None:
    running = outbox.begun()
    checkpoint(outbox, running, "1")
    for crashed in (False, True, False):
        outbox.fail(running, NOW, crashed=crashed)
        running = again(outbox)
    assert outbox.counters(running) == (2, 1)
    show(outbox, running)
    assert outbox.counters(running) == (2, 1)
    checkpoint(outbox, running, cursor)
    assert outbox.counters(running) == before


def test_progress_is_one_row_that_ends_with_the_purge(outbox: Outbox) -> None:
    running = outbox.begun()
    for number in range(3):
        assert show(outbox, running, f'{{"done":{number}}}', NOW + number)
    [row] = shown(outbox)
    assert (row.id, row.text, row.at) == (running.id, '{"done":2}', NOW + 2)
    assert outbox.complete(running)
    assert outbox.purge() == 1
    assert shown(outbox) == []


def test_of_checkpoint_and_progress_the_newer_is_shown(outbox: Outbox) -> None:
    def said() -> str | None:
        [row] = outbox.queries.rows()
        return shown_last(row)

    running = outbox.begun()
    assert said() is None
    show(outbox, running, '{"done":1}', NOW + 1)
    assert said() == '{"done":1}'
    with outbox.at(NOW + 2):
        checkpoint(outbox, running, "1", '{"done":2}')
    assert said() == '{"done":2}'
    show(outbox, running, '{"done":3}', NOW + 3)
    assert said() == '{"done":3}'
    with outbox.at(NOW + 4):
        checkpoint(outbox, running, "2", None)
    assert outbox.fail(running, NOW)
    assert said() == '{"done":2}'


def test_both_move_the_deadline_and_what_an_earlier_attempt_did_does_not(outbox: Outbox) -> None:
    def moved() -> float:
        [row] = outbox.processes.running("process")
        assert outbox.now - last_moved(row) == outbox.store.idle_for(running)
        return last_moved(row)

    running = outbox.begun()
    assert moved() == NOW
    with outbox.at(NOW + 5):
        checkpoint(outbox, running)
    assert moved() == NOW + 5
    show(outbox, running, at=NOW + 7)
    assert moved() == NOW + 7 + 2  # Until the next may have been written.
    outbox.fail(running, NOW)
    with outbox.at(NOW + 6):  # Its progress is that of another claim.
        running = again(outbox)
        outbox.begin(running)
    [row] = outbox.processes.running("process")
    assert row.shown_at is None


def test_another_run_goes_on_with_other_data(outbox: Outbox) -> None:
    running, launched = outbox.begun(), envelope()
    outbox.fail(running, NOW)
    running = again(outbox)
    ending = Ending(
        DeliveryState.AVAILABLE, NOW + 9, unused=True, body='{"n":2}', additions=[launched]
    )
    assert outbox.store.record(running, ending)
    assert not outbox.store.record(running, ending)
    row = outbox.row(running.id)
    assert (row["body"], row["run_at"], row["attempts"]) == ('{"n":2}', NOW + 9, 1)
    assert (row["failures"], row["started_at"]) == (0, None)
    assert outbox.state(launched.id) == "available"


def test_what_completed_starts_anew_if_it_is_sent_again_and_all_else_goes_on(
    outbox: Outbox,
) -> None:
    completed, discarded = outbox.begun(), outbox.begun()
    for each in (completed, discarded):
        checkpoint(outbox, each, "7", STEP)
    outbox.complete(completed)
    outbox.fail(discarded)
    for each, cursor in ((completed, None), (discarded, "7")):
        assert outbox.retry(each.id) == 1
        assert (outbox.state(each.id), outbox.row(each.id)["cursor"]) == ("available", cursor)


# -- how it was tried first, and failed


def test_progress_waits_for_no_transaction_that_writes(outbox: Outbox) -> None:
    """On SQLite it would wait for the run's own session, as long as that keeps the lock."""
    running = outbox.begun()
    with outbox.database.engine.connect() as other:
        if outbox.kind == "sqlite":
            other.exec_driver_sql("BEGIN IMMEDIATE")
        other.execute(update(deliveries).values(error="in between"))
        assert show(outbox, running) is (outbox.kind != "sqlite")
        other.rollback()
    assert show(outbox, running)
    assert len(shown(outbox)) == 1


def test_progress_keeps_no_session_from_completing(outbox: Outbox) -> None:
    """In REPEATABLE READ, a row that was changed since the session's first look is lost to it."""
    running = outbox.begun()
    engine = outbox.database.engine
    if outbox.kind != "sqlite":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(engine) as session:
        session.execute(select(deliveries)).all()
        assert show(outbox, running)
        within = session.connection()
        assert outbox.store.checkpoint(running, "1", STEP, within=within) is False
        assert outbox.store.record(running, Ending(DeliveryState.COMPLETED), within=within)
        session.commit()
    assert outbox.state(running.id) == "completed"
