"""A group is closed once, when none of its parts is unfinished, whoever ends them and dies."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import pytest
from sqlalchemy import update

from async_hooks.delivery import DeliveryState, Ending
from async_hooks.envelope import Envelope, new_id
from async_hooks.outbox import groups, purging
from async_hooks.outbox.groups import Groups
from async_hooks.outbox.rows import envelope_of, row_of
from async_hooks.outbox.sql.schema import deliveries
from tests.contracts.outboxes import NOW, Outbox, Steps, envelope, together

NAMES = [str(number) for number in range(100)]
CONTEXT = row_of(envelope(finishes=True), audience="shop", now=NOW)["context"]
ENDS: dict[str, Callable[[Steps, Envelope], object]] = {
    "completed": lambda steps, part: steps.complete(part),
    "discarded": lambda steps, part: steps.fail(part),
    "cancelled": lambda steps, part: steps.cancel(part.id),
}


def parts_of(outbox: Outbox, count: int = 2, **members: Any) -> tuple[Envelope, list[Envelope]]:
    """Launch a group that is told of its end; return it and its parts, begun."""
    parent = envelope(finishes=True, **members)
    children = [parent.for_receiver(name, int(name)) for name in NAMES[:count]]
    known = {("shop.Task", name) for name in NAMES}
    outbox.store.add([parent, *children])
    begun = outbox.claim(count, kinds=known)
    assert all(outbox.begin(each) for each in begun)
    return parent, sorted(begun, key=lambda each: each.position or 0)


@pytest.mark.parametrize("ends", [*combinations_with_replacement(ENDS, 3)], ids="-".join)
def test_its_end_is_the_worst_of_its_parts(outbox: Outbox, ends: tuple[str, ...]) -> None:
    parent, parts = parts_of(outbox, 3)
    for part, end in zip(parts, ends, strict=True):
        assert outbox.state(parent.id) == "waiting"
        ENDS[end](outbox, part)
    worst = next(each for each in ("cancelled", "discarded", "completed") if each in ends)
    row = outbox.row(parent.id)
    assert (row["state"], row["finished_at"]) == (worst, NOW)
    counts = {end: ends.count(end) for end in ends}
    assert json.loads(row["result"])["counts"] == counts
    found = Groups(outbox.database, ["shop"], lambda: NOW).find(parent.id, 0)
    assert found is not None
    assert (found.counts, found.total, found.is_finished) == (counts, 3, True)
    assert [part.state for part in found.failed] == [end for end in ends if end != "completed"]
    [finish] = outbox.finishes(parent)
    assert (finish.state, finish.parent_id, finish.root_id) == ("available", None, parent.id)


def test_a_launch_whose_key_is_taken_adds_none_of_its_parts(outbox: Outbox) -> None:
    winner = outbox.added(unique_key="key")
    loser = envelope(unique_key="key")
    lost = outbox.store.add([loser, loser.for_receiver("one", 0)])
    assert lost[loser.id] == winner.id
    assert len(outbox.rows()) == 1


def test_of_parts_that_end_at_once_one_closes_it(outbox: Outbox) -> None:
    for _ in range(5):
        parent, parts = parts_of(outbox, 8)
        assert all(together(*(lambda part=part: outbox.complete(part) for part in parts)))
        assert outbox.state(parent.id) == "completed"
        assert len(outbox.finishes(parent)) == 1


def test_a_part_that_is_retried_while_the_last_ends_is_never_overlooked(outbox: Outbox) -> None:
    for _ in range(20):
        parent, (one, two) = parts_of(outbox)
        outbox.fail(one)
        retried, _ = together(
            lambda: outbox.retry(one.id),  # noqa: B023
            lambda: outbox.complete(two),  # noqa: B023
        )
        assert retried == 1
        assert (outbox.state(parent.id), outbox.state(one.id)) == ("waiting", "available")
        before = len(outbox.finishes(parent))
        assert before in (0, 1)  # It was closed before, or was not.
        [again] = outbox.claim(kinds={("shop.Task", "0")})
        assert outbox.begin(again)
        assert outbox.complete(again)
        assert outbox.state(parent.id) == "completed"
        assert len(outbox.finishes(parent)) == before + 1
        outbox.clear()


def test_a_group_that_is_cancelled_while_its_last_part_ends_is_closed_once(
    outbox: Outbox,
) -> None:
    for _ in range(5):
        parent, (one, two) = parts_of(outbox)
        outbox.complete(one)
        together(lambda: outbox.cancel(parent.id), lambda: outbox.complete(two))  # noqa: B023
        assert outbox.state(parent.id) == outbox.state(two.id)
        assert outbox.state(two.id) in ("completed", "cancelled")
        assert len(outbox.finishes(parent)) == 1


def test_maintenance_closes_what_a_dead_process_left(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, parts = parts_of(outbox)
    waits, _ = parts_of(outbox)
    with monkeypatch.context() as patch:
        patch.setattr(outbox.store, "close_parent", lambda envelope, ending: None)
        for part in parts:
            outbox.complete(part)
    assert outbox.state(parent.id) == "waiting"
    together(*[outbox.store.close_all] * 4)
    assert (outbox.state(parent.id), outbox.state(waits.id)) == ("completed", "waiting")
    assert len(outbox.finishes(parent)) == 1


def test_a_paused_part_that_is_to_be_retried_is_held(outbox: Outbox) -> None:
    parent, (one, two) = parts_of(outbox)
    assert outbox.queries.pause_delivery(parent.id)
    assert outbox.fail(one, NOW)
    assert outbox.undo(two)
    assert [outbox.state(each.id) for each in (one, two)] == ["held", "held"]
    known = {("shop.Task", name) for name in NAMES}
    assert outbox.claim(kinds=known) == []
    assert outbox.queries.resume_delivery(parent.id)
    assert len(outbox.claim(kinds=known)) == 2


def test_a_paused_group_whose_running_parts_end_is_closed_and_no_longer_paused(
    outbox: Outbox,
) -> None:
    parent, parts = parts_of(outbox)
    assert outbox.queries.pause_delivery(parent.id)
    assert all(outbox.complete(part) for part in parts)
    row = outbox.row(parent.id)
    assert (row["state"], row["paused"]) == ("completed", None)


def test_a_group_is_purged_as_a_whole_and_not_before_its_end_was_told(outbox: Outbox) -> None:
    parent, (one, two) = parts_of(outbox)
    outbox.complete(one)
    assert outbox.purge(before=NOW + 50) == 0
    outbox.complete(two, now=NOW + 100)
    assert outbox.purge(before=NOW + 150) == 0  # Its finish is yet to come.
    [finish] = outbox.finishes(parent)
    [claimed] = outbox.claim(kinds={("shop.Task", finish.receiver)}, now=NOW + 150)
    assert outbox.begin(claimed, now=NOW + 150)
    assert outbox.complete(claimed, now=NOW + 150)
    assert outbox.purge(before=NOW + 150) == 0
    assert outbox.purge(before=NOW + 151) == 4


def test_what_has_to_stay_keeps_a_purge_from_nothing_behind_it(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "BATCH", 2)
    kept = [parts_of(outbox) for _ in range(3)]
    for number, (_, (one, _)) in enumerate(kept):
        outbox.complete(one, now=NOW + number)
    for number in range(3):
        outbox.complete(outbox.begun(), now=NOW + 10 + number)
    with outbox.at(NOW + 100):
        assert [*outbox.queries.purging(0)] == [1, 2]
        assert outbox.queries.purge_page(0) == (0, NOW + 1)
    assert len(outbox.rows()) == 9


def test_a_finish_that_is_discarded_tells_nobody_and_ends_it(outbox: Outbox) -> None:
    parent, parts = parts_of(outbox)
    for part in parts:
        outbox.complete(part)
    [finish] = outbox.finishes(parent)
    [claimed] = outbox.claim(kinds={("shop.Task", finish.receiver)})
    assert outbox.begin(claimed)
    assert outbox.store.record(claimed, Ending(DeliveryState.DISCARDED, error="no"))
    assert outbox.state(parent.id) == "completed"
    assert len(outbox.finishes(parent)) == 1


def test_a_result_that_can_not_be_read_keeps_no_group_open(outbox: Outbox) -> None:
    parent, (one, two) = parts_of(outbox)
    assert outbox.complete(one, result="[1")
    assert outbox.complete(two, result='{"result":[2]}')
    assert outbox.state(parent.id) == "completed"
    assert outbox.store.result_of(parent.id) == {"0": None, "1": 2}
    outbox.database.execute(update(deliveries).values(result="["))
    assert outbox.store.result_of(parent.id) is None
    found = Groups(outbox.database, ["shop"], lambda: NOW).find(parent.id, 0)
    assert found is not None
    assert found.counts == {"completed": 2}


def test_a_launch_of_another_release_is_told_of_its_end_by_that(outbox: Outbox) -> None:
    parent, parts = parts_of(outbox)
    text = json.dumps({"v": 2, "finishes": True})
    outbox.database.execute(
        update(deliveries).where(deliveries.c.id == parent.id).values(context=text)
    )
    for part in parts:
        assert outbox.complete(part)
    assert outbox.state(parent.id) == "completed"
    [finish] = outbox.finishes(parent)
    assert (finish.context, finish.body) == (text, parent.body)
    readable = envelope_of(finish._replace(context=CONTEXT), lease=None, attempt=1)
    assert (readable[0].finishes, readable[1]) == (False, None)


def test_an_end_that_is_told_late_has_the_results_there_are(outbox: Outbox) -> None:
    parent, (one, two) = parts_of(outbox)
    assert outbox.fail(one)
    assert outbox.complete(two, result='{"result":["sent"]}')
    assert outbox.retry(one.id) == 1
    assert outbox.store.result_of(parent.id) == {"1": "sent"}


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_launch_that_is_cancelled_before_it_is_split_is_told_of_its_end(
    outbox: Outbox, is_begun: bool
) -> None:
    launch, untold = outbox.added(finishes=True), outbox.added()
    if is_begun:
        assert all(outbox.begin(each) for each in outbox.claim())
    assert len(outbox.queries.cancel_batch([launch.id, untold.id])) == 2
    assert len(outbox.queries.cancel_batch([launch.id, untold.id])) == 0
    assert len(outbox.finishes(launch)) == 1
    assert outbox.finishes(untold) == []
    assert outbox.store.result_of(launch.id) == {}


@pytest.mark.parametrize("end", ["discarded", "cancelled"])
def test_a_group_of_one_names_itself_where_it_failed(outbox: Outbox, end: str) -> None:
    launch = outbox.begun()
    ENDS[end](outbox, launch)
    found = Groups(outbox.database, ["shop"], lambda: NOW).find(launch.id, 0)
    assert found is not None
    assert (found.counts, [part.id for part in found.failed]) == ({end: 1}, [launch.id])
    assert found.failed[0].state == end


def test_a_group_of_another_app_is_not_shown(outbox: Outbox) -> None:
    parent, _ = parts_of(outbox)
    assert Groups(outbox.database, ["another"], lambda: NOW).find(parent.id, 0) is None


def test_what_is_claimed_and_then_paused_does_not_begin(outbox: Outbox) -> None:
    claimed, running = outbox.claimed(), outbox.begun()
    assert outbox.queries.pause_delivery(claimed.id)
    assert outbox.queries.pause_delivery(running.id)
    assert not outbox.begin(claimed)
    assert (outbox.state(claimed.id), outbox.state(running.id)) == ("held", "executing")
    assert outbox.claim() == []
    assert outbox.complete(running)
    assert outbox.queries.resume_delivery(claimed.id)
    [again] = outbox.claim()
    assert outbox.begin(again)


def test_what_is_paused_while_it_runs_becomes_paused_parts(outbox: Outbox) -> None:
    running = outbox.begun()
    parts = [running.for_receiver(name, number) for number, name in enumerate(("one", "two"))]
    assert outbox.queries.pause_delivery(running.id)
    assert outbox.complete(running, additions=parts)
    assert outbox.claim() == []
    assert outbox.queries.resume_delivery(running.id)
    assert len(outbox.claim()) == 2


@pytest.mark.parametrize("what", ["pause", "retry"])
def test_what_is_changed_while_it_is_split_is_changed_as_a_whole(outbox: Outbox, what: str) -> None:
    running = outbox.begun()
    parts = [running.for_receiver(name, number) for number, name in enumerate(("one", "two"))]

    def change(steps: Steps) -> None:
        if what == "pause":
            steps.queries.pause_delivery(running.id)
        else:
            steps.retry(running.id)

    outbox.meanwhile(lambda steps: steps.complete(running, additions=parts), change)
    assert outbox.state(running.id) == "waiting"
    assert len(outbox.claim()) == (0 if what == "pause" else 2)


def test_of_many_that_wait_maintenance_looks_at_some_in_turn(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [parts_of(outbox, 1, queue=str(number % 2), priority=number) for number in range(5)]
    monkeypatch.setattr(outbox.store, "close_parent", lambda envelope, ending: None)
    for _, [part] in made[1:]:
        assert outbox.complete(part)
    monkeypatch.setattr(groups, "PAGE", 2)
    monkeypatch.setattr(groups, "_PARENTS", groups._PARENTS.limit(2))
    found = []
    for _ in range(4):
        outbox.store.close_all()
        found.append(sum(outbox.state(parent.id) == "completed" for parent, _ in made))
    assert found == [1, 3, 4, 4]
    assert outbox.state(made[0][0].id) == "waiting"


@pytest.mark.slow
def test_of_thousands_of_parts_that_eight_end_one_closes_it_without_a_deadlock(
    outbox: Outbox,
) -> None:
    count = 10_000 if "LONG" in os.environ else 300
    parent = envelope(finishes=True)
    outbox.store.add([parent, *(parent.for_receiver("one", n) for n in range(1))])
    [first] = outbox.claim(kinds=KINDS)
    rows = [first._replace(id=new_id(), position=n, lease=None) for n in range(1, count)]
    for begin in range(0, len(rows), 500):
        outbox.store.add(rows[begin : begin + 500])
    assert outbox.begin(first)
    before = deadlocks(outbox)
    slowest = together(*[partial(end_all, outbox, number) for number in range(8)])
    assert outbox.complete(first)
    assert outbox.state(parent.id) == "completed"
    assert json.loads(outbox.row(parent.id)["result"])["counts"] == {"completed": count}
    assert len(outbox.finishes(parent)) == 1
    assert deadlocks(outbox) == before
    print(f"{outbox.kind}: the slowest end took {max(slowest) * 1000:.1f} ms")


KINDS = {("shop.Task", "one")}


def end_all(outbox: Outbox, number: int) -> float:
    """End parts until none is left, as a process of its own; return what the slowest took."""
    steps, slowest = Steps(outbox.another(patience=20)), 0.0
    while claimed := steps.claim(20, process=f"process {number}", kinds=KINDS):
        for each in claimed:
            assert steps.begin(each)
            began = time.monotonic()
            assert steps.complete(each)
            slowest = max(slowest, time.monotonic() - began)
    steps.database.engine.dispose()
    return slowest


def deadlocks(outbox: Outbox) -> int:
    """Return how many the server has seen in this database so far; MariaDB counts all at once."""
    with outbox.database.engine.connect() as connection:
        if outbox.kind == "postgresql":
            query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            return int(connection.exec_driver_sql(query).scalar_one())
    return 0
