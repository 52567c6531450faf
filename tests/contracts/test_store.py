"""Every step of a delivery's life does the same in each kind of database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import update

from async_hooks.delivery import DeliveryState, Ending
from async_hooks.envelope import Envelope, Origin
from async_hooks.errors import DataError
from async_hooks.outbox import audiences, purging, queries
from async_hooks.outbox.claiming import QueueHead, queue_heads
from async_hooks.outbox.processes import ProcessRow
from async_hooks.outbox.sql.schema import deliveries
from tests.contracts.outboxes import NOW, Outbox, Steps, envelope

COLUMNS_OF_A_HOLDER = ("process_id", "lease")

COLLATION = "Texts are compared as the server's collation says."


# -- adding


def test_what_is_added_is_there_as_it_was_said(outbox: Outbox) -> None:
    made = envelope(receiver="one", priority=3)
    assert outbox.add(made, queue="mail", run_at=NOW + 5.25, ref="lead-7") == {}
    row = outbox.row(made.id)
    assert row["state"] == "available"
    assert (row["queue"], row["priority"], row["receiver"]) == ("mail", 3, "one")
    assert (row["run_at"], row["created_at"], row["ref"]) == (NOW + 5.25, NOW, "lead-7")
    assert (row["attempts"], row["crashes"], row["lease"], row["process_id"]) == (0, 0, None, None)


def test_adding_what_is_there_changes_nothing(outbox: Outbox) -> None:
    made = outbox.added()
    before = outbox.rows()
    assert outbox.add(made._replace(body='{"n":2}'), queue="mail") == {}
    assert outbox.rows() == before


def test_adding_what_runs_changes_nothing(outbox: Outbox) -> None:
    running = outbox.begun(unique_key="key")
    before = outbox.rows()
    assert outbox.add(running, unique_key="key") == {}
    assert outbox.rows() == before


def test_adding_what_has_finished_changes_nothing(outbox: Outbox) -> None:
    running = outbox.begun()
    outbox.complete(running)
    before = outbox.rows()
    assert outbox.add(running) == {}
    assert outbox.rows() == before


def test_adding_what_has_finished_and_had_a_unique_key_changes_nothing(outbox: Outbox) -> None:
    running = outbox.begun(unique_key="key")
    outbox.complete(running)
    before = outbox.rows()
    assert outbox.add(running, unique_key="key") == {}
    assert outbox.rows() == before


@pytest.mark.parametrize("column", ["task", "receiver"])
def test_a_name_that_is_too_long_is_refused(outbox: Outbox, column: str) -> None:
    name = "x" * 300
    made = envelope(**{column: name})
    with pytest.raises(DataError, match="too long"):
        outbox.add(made)
    assert outbox.rows() == []


def test_the_loser_of_a_unique_key_learns_the_winners_id(outbox: Outbox) -> None:
    winner, loser = outbox.added(unique_key="key"), envelope()
    assert outbox.add(loser, unique_key="key") == {loser.id: winner.id}
    assert [row["id"] for row in outbox.rows()] == [winner.id]


def test_two_additions_at_once_with_one_unique_key_are_one_delivery(outbox: Outbox) -> None:
    winner, loser = envelope(), envelope()
    assert outbox.add(winner, loser, unique_key="key") == {loser.id: winner.id}


def test_a_unique_key_lasts_over_a_failure_that_is_retried(outbox: Outbox) -> None:
    running = outbox.begun(unique_key="key")
    outbox.fail(running, NOW)
    loser = envelope()
    assert outbox.add(loser, unique_key="key") == {loser.id: running.id}


@pytest.mark.parametrize("end", ["completed", "discarded", "cancelled"])
def test_a_unique_key_is_free_once_its_delivery_is(outbox: Outbox, end: str) -> None:
    running = outbox.begun(unique_key="key")
    assert finish(outbox, running, end)
    assert outbox.state(running.id) == end
    assert outbox.add(envelope(), unique_key="key") == {}


def test_who_has_a_unique_key_can_be_asked(outbox: Outbox) -> None:
    winner = outbox.added(unique_key="key")
    assert outbox.store.unfinished("key") == winner.id
    assert outbox.store.unfinished("other") is None


# -- a fan-out


@pytest.mark.parametrize("last", ["completed", "discarded", "cancelled"])
def test_a_parents_unique_key_is_held_until_its_last_child_finishes(
    outbox: Outbox, last: str
) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    assert (outbox.state(parent.id), outbox.key(parent.id)) == ("waiting", "key")
    assert outbox.complete(one)
    assert outbox.key(parent.id) == "key"
    assert finish(outbox, two, last)
    assert outbox.key(parent.id) is None


def test_a_child_that_is_to_be_retried_holds_its_parents_unique_key(outbox: Outbox) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    outbox.fail(two, NOW + 60)
    assert outbox.key(parent.id) == "key"


def test_a_child_whose_process_dies_once_too_often_frees_its_parents_unique_key(
    outbox: Outbox,
) -> None:
    parent = outbox.begun(unique_key="key")
    one, _ = outbox.split(parent, "one", "two")
    assert outbox.complete(one)
    [orphan] = outbox.claimed_by("process")
    assert outbox.fail(orphan.envelope, crashed=True)
    assert outbox.key(parent.id) is None


def test_a_second_split_is_harmless(outbox: Outbox) -> None:
    parent = outbox.begun()
    children = [parent.for_receiver(name) for name in ("one", "two")]
    outbox.add(*children)
    [ran] = outbox.claim(1)
    outbox.begin(ran)
    outbox.complete(ran)
    assert outbox.complete(parent, additions=children)
    assert outbox.state(ran.id) == "completed"
    assert len(outbox.rows()) == 3


def test_what_a_stale_attempt_was_split_into_is_not_kept(outbox: Outbox) -> None:
    stale = outbox.begun()
    outbox.cancel(stale.id)
    launched = envelope()
    child = stale.for_receiver("one")
    assert not outbox.complete(stale, additions=[launched, child])
    assert [row["id"] for row in outbox.rows()] == [stale.id]


def test_what_an_attempt_launched_is_kept_with_its_completion(outbox: Outbox) -> None:
    running = outbox.begun(unique_key="key")
    launched = envelope()
    assert outbox.complete(running, additions=[launched._replace(queue="mail")])
    assert outbox.row(launched.id)["queue"] == "mail"
    assert outbox.key(running.id) is None  # It was not split.


# -- claiming


def test_the_first_by_priority_then_time_then_id_is_claimed_first(outbox: Outbox) -> None:
    late, early, urgent, same = (envelope() for _ in range(4))
    outbox.add(late, run_at=NOW - 1)
    outbox.add(same, early, run_at=NOW - 2)
    outbox.add(urgent._replace(priority=1), run_at=NOW)
    assert ids(outbox.claim()) == [urgent.id, early.id, same.id, late.id]


def test_one_priority_spans_the_queues(outbox: Outbox) -> None:
    last = outbox.added(queue="a", run_at=NOW - 1)
    first = outbox.added(queue="b", run_at=NOW - 2)
    assert ids(outbox.claim(1)) == [first.id]
    assert ids(outbox.claim(1)) == [last.id]


def test_named_queues_are_claimed_in_their_order_and_no_others(outbox: Outbox) -> None:
    other, second = outbox.added(queue="other"), outbox.added(queue="second")
    first = outbox.added(queue="first")
    assert ids(outbox.claim(queues=["first", "second"])) == [first.id, second.id]
    assert outbox.state(other.id) == "available"


def test_the_order_of_named_queues_goes_before_priority(outbox: Outbox) -> None:
    urgent, first = envelope(priority=1), envelope(priority=50)
    outbox.add(urgent, queue="second")
    outbox.add(first, queue="first")
    assert ids(outbox.claim(queues=["first", "second"])) == [first.id, urgent.id]


def test_queues_that_differ_only_in_case_are_two(outbox: Outbox) -> None:
    small, large = outbox.added(queue="mail"), outbox.added(queue="Mail")
    assert ids(outbox.claim(queues=["mail"])) == [small.id]
    assert ids(outbox.claim(queues=["Mail"])) == [large.id]


def test_queues_that_differ_only_in_case_are_paused_apart(outbox: Outbox) -> None:
    small, _ = outbox.added(queue="mail"), outbox.added(queue="Mail")
    outbox.queries.pause("Mail")
    assert ids(outbox.claim()) == [small.id]
    outbox.queries.pause("mail")
    assert outbox.queries.paused() == ["Mail", "mail"]


def test_kinds_that_differ_only_in_case_are_two(outbox: Outbox) -> None:
    outbox.add(envelope(receiver="ONE"))
    assert outbox.claim() == []


def test_a_paused_queue_is_left_alone_until_it_is_resumed(outbox: Outbox) -> None:
    paused, other = outbox.added(queue="mail"), outbox.added()
    # Twice is as good as once, and is told apart.
    assert [outbox.queries.pause("mail") for _ in range(2)] == [True, False]
    assert outbox.queries.paused() == ["mail"]
    assert ids(outbox.claim()) == [other.id]
    assert [outbox.queries.resume("mail") for _ in range(2)] == [True, False]
    assert ids(outbox.claim()) == [paused.id]


def test_unknown_tasks_and_receivers_are_left_alone(outbox: Outbox) -> None:
    outbox.add(envelope(task="other.Task"), envelope(receiver="three"), envelope(task="one"))
    assert outbox.claim() == []
    assert outbox.claim(kinds=[]) == []
    assert len(outbox.claim(kinds=[("other.Task", ""), ("shop.Task", "three")])) == 2


def test_what_is_not_due_is_left_alone_until_then(outbox: Outbox) -> None:
    later = outbox.added(run_at=NOW + 5)
    assert outbox.claim() == []
    assert queue_heads(outbox.database, ["shop"]) == [QueueHead("shop", "default", 10, NOW + 5)]
    assert ids(outbox.claim(now=NOW + 5)) == [later.id]


def test_no_more_than_the_limit_is_claimed(outbox: Outbox) -> None:
    for queue in ("a", "b"):
        for priority in (1, 2):
            outbox.add(*(envelope(priority=priority) for _ in range(3)), queue=queue)
    assert [len(outbox.claim(limit)) for limit in (0, 1, 4, 5, 100, 100)] == [0, 1, 4, 5, 2, 0]


def test_what_is_claimed_says_whose_it_is(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    row = outbox.row(claimed.id)
    assert (row["state"], row["process_id"], row["lease"]) == (
        "executing",
        "process",
        claimed.lease,
    )
    assert (row["attempts"], row["started_at"], claimed.attempt) == (0, None, 1)


#: What newer code, or a hand, may have left in a row.
UNREADABLE = {
    "not an object": {"body": "[1]"},
    "no JSON": {"body": "{"},
    "nested": {"body": "[" * 100_000},
    "no context": {"context": "{}"},
    "a newer context": {"context": '{"v": 2, "depth": 0}'},
}


@pytest.mark.parametrize("values", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_row_that_cannot_be_read_is_left_to_others_and_delays_nobody(
    outbox: Outbox, values: dict[str, str]
) -> None:
    spoilt, sound = outbox.added(), outbox.added()
    outbox.database.execute(update(deliveries).where(deliveries.c.id == spoilt.id).values(**values))
    assert ids(outbox.claim()) == [sound.id]
    row = outbox.row(spoilt.id)
    assert (row["state"], row["attempts"], row["process_id"]) == ("available", 0, None)
    assert "can't read the row" in row["error"]
    assert row["run_at"] == NOW + 60
    assert ids(outbox.claim()) == []


def spoil(outbox: Outbox, spoilt: Envelope, values: dict[str, str]) -> None:
    outbox.database.execute(update(deliveries).where(deliveries.c.id == spoilt.id).values(**values))


@pytest.mark.parametrize("values", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_row_that_cannot_be_read_stops_no_rescue(outbox: Outbox, values: dict[str, str]) -> None:
    rows = [outbox.claimed() for _ in range(2)] + [outbox.begun() for _ in range(2)]
    spoil(outbox, rows[0], values)
    spoil(outbox, rows[2], values)
    assert len(outbox.claimed_by("process")) == 4
    outbox.rescue("process")
    assert {outbox.state(each.id) for each in rows} == {"available"}
    assert outbox.claimed_by("process") == []
    assert sorted(ids(outbox.claim())) == sorted([rows[1].id, rows[3].id])


@pytest.mark.parametrize("values", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_row_that_cannot_be_read_is_managed_as_the_others(
    outbox: Outbox, values: dict[str, str]
) -> None:
    spoilt, sound = outbox.added(), outbox.added()
    spoil(outbox, spoilt, values)
    assert [row.id for row in outbox.queries.rows()] == [sound.id, spoilt.id]
    assert outbox.queries.counts()["available"] == 2
    assert outbox.queries.unfinished() == [("shop.Task", "", 2, NOW)]
    assert list(outbox.queries.cancelling(["available"])) == [2]
    assert list(outbox.queries.retrying(["cancelled"])) == [2]
    assert outbox.cancel(spoilt.id)
    assert outbox.cancel(sound.id)
    assert outbox.purge() == 2


def test_a_context_may_say_more_than_this_code_knows(outbox: Outbox) -> None:
    added = outbox.added()
    context = {**json.loads(outbox.row(added.id)["context"]), "from": "a newer release"}
    newer = update(deliveries).values(context=json.dumps(context))
    outbox.database.execute(newer.where(deliveries.c.id == added.id))
    assert ids(outbox.claim()) == [added.id]


# -- whose a row is


@pytest.fixture
def blog(outbox: Outbox) -> Steps:
    """Another app on the same tables."""
    return Steps(outbox.database, ["blog"])


def test_a_row_is_claimed_by_its_own_app(outbox: Outbox, blog: Steps) -> None:
    added = outbox.added()
    assert blog.claim() == []
    assert ids(outbox.claim()) == [added.id]


def test_no_app_sees_or_changes_what_is_anothers(outbox: Outbox, blog: Steps) -> None:
    added = outbox.added(ref="lead-7", run_at=NOW - 1)
    outbox.queries.pause("default")
    heartbeat(outbox, "process")
    assert blog.queries.rows(ids=[added.id]) == []
    assert blog.queries.rows(ref="lead-7") == []
    assert (set(blog.queries.counts().values()), blog.queries.unfinished()) == ({0}, [])
    assert blog.queries.oldest_due() is None
    assert blog.queries.paused() == []
    assert blog.processes.all() == []
    blog.queries.resume("default")
    assert not blog.cancel(added.id)
    assert blog.retry(added.id) == 0
    assert outbox.queries.paused() == ["default"]
    assert outbox.state(added.id) == "available"


def test_what_finished_is_purged_by_its_own_app(outbox: Outbox, blog: Steps) -> None:
    outbox.complete(outbox.begun())
    assert blog.purge() == 0
    assert outbox.purge() == 1


def test_a_unique_key_is_unique_within_its_app(outbox: Outbox, blog: Steps) -> None:
    outbox.added(unique_key="key")
    assert blog.added(unique_key="key")
    assert blog.store.unfinished("key") != outbox.store.unfinished("key")


def test_an_app_with_several_names_reads_all_and_writes_the_first(outbox: Outbox) -> None:
    former = outbox.added(unique_key="key")
    renamed = Steps(outbox.database, ["store", "shop"])
    latter = renamed.added()
    assert outbox.row(latter.id)["audience"] == "store"
    assert renamed.store.unfinished("key") == former.id
    assert set(ids(renamed.claim())) == {former.id, latter.id}


def test_a_pause_holds_for_every_name_of_an_app(outbox: Outbox) -> None:
    renamed = Steps(outbox.database, ["store", "shop"])
    outbox.queries.pause("default")
    latter = renamed.added()
    assert renamed.claim() == []
    assert not renamed.queries.pause("default")
    assert renamed.queries.resume("default")
    assert ids(renamed.claim()) == [latter.id]
    renamed.queries.pause("default")
    outbox.added()
    assert outbox.claim() == renamed.claim() == []


def test_a_unique_key_is_unique_among_the_names_of_an_app(outbox: Outbox) -> None:
    former = outbox.added(unique_key="key")
    renamed = Steps(outbox.database, ["store", "shop"])
    again = envelope()
    assert renamed.add(again, unique_key="key") == {again.id: former.id}
    assert len(renamed.claim()) == 1


def test_what_a_process_holds_of_one_app_hides_nothing_of_another(
    outbox: Outbox, blog: Steps
) -> None:
    for _ in range(600):
        blog.added()
    held = outbox.claimed()
    assert len(blog.claim(600)) == 600
    assert [orphan.envelope.id for orphan in outbox.claimed_by("process")] == [held.id]


def test_an_app_adopts_what_belongs_to_its_former_name(outbox: Outbox) -> None:
    outbox.added(unique_key="taken")
    waiting = outbox.added(unique_key="free")
    outbox.queries.pause("mail")
    renamed = Steps(outbox.database, ["store"])
    renamed.added(unique_key="taken")
    assert audiences.others(outbox.database, ["store"]) == ["shop"]
    assert audiences.adopt(outbox.database, "shop", "store", NOW) == 2
    assert audiences.others(outbox.database, ["store"]) == []
    assert renamed.queries.paused() == ["mail"]
    assert renamed.store.unfinished("free") == waiting.id
    assert len(renamed.claim()) == 3


@pytest.mark.parametrize(
    "text", ["x" * 2**20, "ünï → 日本語 🍕👩‍👩‍👧" * 10_000, "\\\"'%s:x\n\t\u2028"],
    ids=["a MiB", "unicode", "quotes"],
)  # fmt: skip
def test_bodies_come_out_as_they_went_in(outbox: Outbox, text: str) -> None:
    body = json.dumps({"text": text}, ensure_ascii=False)
    made = envelope(
        body=body,
        user={"id": text[:50]},
        carried=json.dumps({"locale": text[:50]}, separators=(",", ":")),
        origin=Origin("https", "ä.example", "/shop"),
        depth=3,
        priority=-5,
        parent_id="parent",
        receiver="two",
    )
    outbox.add(made)
    [claimed] = outbox.claim()
    assert claimed == made._replace(lease=claimed.lease)
    assert outbox.begin(claimed)
    assert outbox.complete(claimed, result=body)
    assert outbox.row(made.id)["result"] == body


# -- an attempt


def test_an_attempt_begins_once(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    assert outbox.begin(claimed, now=NOW + 1)
    assert not outbox.begin(claimed)
    row = outbox.row(claimed.id)
    assert (row["attempts"], row["started_at"]) == (1, NOW + 1)


def test_a_stale_lease_or_attempt_cannot_begin(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    before = outbox.rows()
    for stale in (
        claimed._replace(lease="another"),
        claimed._replace(lease=None),
        claimed._replace(attempt=2),
        claimed._replace(attempt=0),
        claimed._replace(id="another"),
    ):
        assert not outbox.begin(stale)
    assert outbox.rows() == before


def test_an_attempt_belongs_to_who_executes_it(outbox: Outbox) -> None:
    first, second = outbox.claimed(), outbox.claimed()
    outbox.begin(first, process="executor")
    outbox.begin(second, process=None)
    assert outbox.row(first.id)["process_id"] == "executor"
    assert outbox.row(second.id)["process_id"] == "process"


def test_a_completed_attempt_is_finished_and_nobodys(outbox: Outbox) -> None:
    running = outbox.begun()
    assert outbox.complete(running, result='{"result":1}', now=NOW + 2)
    row = outbox.row(running.id)
    assert (row["state"], row["finished_at"], row["attempts"]) == ("completed", NOW + 2, 1)
    assert [row[column] for column in COLUMNS_OF_A_HOLDER] == [None, None]
    assert (row["result"], row["error"]) == ('{"result":1}', None)
    assert not outbox.complete(running)


def test_what_has_not_begun_can_neither_be_completed_nor_fail(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    before = outbox.rows()
    assert not outbox.complete(claimed)
    assert not outbox.fail(claimed)
    assert outbox.rows() == before


def test_giving_back_uses_no_attempt(outbox: Outbox) -> None:
    claimed = outbox.claimed(run_at=NOW - 7)
    assert outbox.release(claimed)
    row = outbox.row(claimed.id)
    assert (row["state"], row["attempts"], row["run_at"]) == ("available", 0, NOW - 7)
    assert [row[column] for column in COLUMNS_OF_A_HOLDER] == [None, None]
    assert not outbox.release(claimed)


def test_what_has_begun_is_given_back_only_if_that_is_said(outbox: Outbox) -> None:
    running = outbox.begun()
    assert not outbox.release(running)
    assert outbox.undo(running, run_at=NOW + 9)
    row = outbox.row(running.id)
    assert (row["state"], row["attempts"], row["run_at"]) == ("available", 0, NOW + 9)
    [again] = outbox.claim(now=NOW + 9)
    assert again.attempt == 1


def test_a_failure_is_retried_when_it_is_said(outbox: Outbox) -> None:
    running = outbox.begun()
    assert outbox.fail(running, NOW + 60, error="ünï 🍕")
    row = outbox.row(running.id)
    assert (row["state"], row["run_at"], row["error"]) == ("available", NOW + 60, "ünï 🍕")
    assert (row["attempts"], row["crashes"], row["finished_at"]) == (1, 0, None)
    [again] = outbox.claim(now=NOW + 60)
    assert again.attempt == 2


def test_a_failure_without_a_next_time_is_discarded(outbox: Outbox) -> None:
    running = outbox.begun()
    assert outbox.fail(running, now=NOW + 3)
    row = outbox.row(running.id)
    assert (row["state"], row["finished_at"], row["error"]) == ("discarded", NOW + 3, "it failed")
    assert outbox.claim(now=NOW + 1000) == []


def test_failures_and_crashes_are_counted_apart(outbox: Outbox) -> None:
    counted: list[tuple[int, int] | None] = []
    outbox.added()
    for crashed in (False, True, True, False):
        [claimed] = outbox.claim()
        outbox.begin(claimed)
        counted.append(outbox.counters(claimed))
        outbox.fail(claimed, NOW, crashed=crashed)
    assert counted == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert outbox.counters(claimed) is None


@pytest.mark.parametrize("error", ["nul \x00", "half of a pair \ud83c"], ids=["NUL", "surrogate"])
def test_whatever_an_error_says_can_be_written(outbox: Outbox, error: str) -> None:
    running = outbox.begun()
    assert outbox.fail(running, error=error)
    assert outbox.state(running.id) == "discarded"


def every_write(outbox: Outbox, zombie: Envelope) -> list[object]:
    """Try all that an attempt can write; return the results."""
    child = zombie.for_receiver("one")
    return [
        outbox.begin(zombie, process="zombie"),
        outbox.complete(zombie, result="0", additions=[child, envelope()]),
        outbox.fail(zombie, NOW),
        outbox.fail(zombie, crashed=True),
        outbox.release(zombie),
        outbox.undo(zombie, run_at=NOW + 1),
    ]


@pytest.mark.parametrize("since", ["nothing", "claimed", "begun", "completed", "discarded"])
@pytest.mark.parametrize("had_begun", [False, True])
def test_who_was_rescued_from_changes_nothing_any_more(
    outbox: Outbox, had_begun: bool, since: str
) -> None:
    zombie = outbox.begun() if had_begun else outbox.claimed()
    outbox.rescue("process")
    if since != "nothing":
        [again] = outbox.claim(process="survivor")
        assert again.attempt == (2 if had_begun else 1)
        if since != "claimed":
            outbox.begin(again, process="survivor")
        if since in ("completed", "discarded"):
            assert outbox.complete(again) if since == "completed" else outbox.fail(again)
    before = outbox.rows()
    assert not any(every_write(outbox, zombie))
    assert outbox.rows() == before


def test_who_was_retried_meanwhile_changes_nothing_any_more(outbox: Outbox) -> None:
    zombie = outbox.begun()
    outbox.cancel(zombie.id)
    outbox.retry(zombie.id)
    [again] = outbox.claim(process="survivor")
    assert again.attempt == zombie.attempt
    outbox.begin(again, process="survivor")
    before = outbox.rows()
    assert not any(every_write(outbox, zombie))
    assert outbox.rows() == before


# -- relays


def test_what_a_relay_holds_is_known_and_whether_it_has_begun(outbox: Outbox) -> None:
    waits, runs = outbox.claimed(), outbox.begun()
    outbox.added()
    found = {orphan.envelope.id: orphan for orphan in outbox.claimed_by("process")}
    assert found.keys() == {waits.id, runs.id}
    assert (found[waits.id].has_begun, found[runs.id].has_begun) == (False, True)
    for held in (waits, runs):
        orphan = found[held.id].envelope
        assert (orphan.attempt, orphan.lease) == (held.attempt, held.lease)
    assert outbox.claimed_by("another") == []


def test_what_was_given_back_and_claimed_again_has_not_begun(outbox: Outbox) -> None:
    outbox.undo(outbox.begun())
    outbox.claim(process="another")
    [orphan] = outbox.claimed_by("another")
    assert not orphan.has_begun


def heartbeat(outbox: Outbox, process: str, now: float = NOW, **said: Any) -> list[ProcessRow]:
    said = {"host": "shop", "pid": 7, "host_id": None, "problem": None, **said}
    with outbox.at(now):
        return outbox.processes.heartbeat(process, **said)


def test_a_beat_shows_who_lives_and_returns_the_others(outbox: Outbox) -> None:
    assert heartbeat(outbox, "one", host_id="here") == []
    [one] = heartbeat(outbox, "two")
    assert (one.id, one.host, one.pid, one.host_id, one.heartbeat) == ("one", "shop", 7, "here", 1)
    heartbeat(outbox, "one", NOW + 5, problem="🍕")
    [one] = heartbeat(outbox, "two")
    assert (one.heartbeat, one.started_at, one.seen_at, one.problem) == (2, NOW, NOW + 5, "🍕")


def test_a_beat_returns_those_that_hold_and_have_no_row(outbox: Outbox) -> None:
    outbox.claimed()
    outbox.claimed()
    assert [seen.id for seen in heartbeat(outbox, "one")] == ["process"]


def test_who_signed_off_is_not_seen_any_more(outbox: Outbox) -> None:
    heartbeat(outbox, "one")
    outbox.processes.deregister("one")
    assert heartbeat(outbox, "two") == []


# -- looking after them


@pytest.mark.parametrize("end", ["completed", "discarded", "cancelled", "available"])
def test_a_retry_makes_it_due_with_all_attempts_before_it(outbox: Outbox, end: str) -> None:
    running = outbox.begun()
    if end == "cancelled":
        outbox.cancel(running.id)
    elif end == "completed":
        outbox.complete(running, result="{}")
    else:
        outbox.fail(running, NOW + 60 if end == "available" else None, crashed=True)
    assert outbox.retry(running.id, now=NOW + 1) == 1
    row = outbox.row(running.id)
    assert (row["state"], row["run_at"], row["finished_at"]) == ("available", NOW + 1, None)
    assert (row["attempts"], row["crashes"], row["result"]) == (0, 0, None)
    [again] = outbox.claim(now=NOW + 1)
    assert again.attempt == 1


def test_what_executes_is_not_retried(outbox: Outbox) -> None:
    running = outbox.begun()
    before = outbox.rows()
    assert outbox.retry(running.id) == 0
    assert outbox.retry("another") == 0
    assert outbox.rows() == before


def test_of_a_fan_out_the_children_that_did_not_succeed_are_retried(outbox: Outbox) -> None:
    parent = outbox.begun()
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    outbox.fail(two)
    assert outbox.state(parent.id) == "discarded"
    assert outbox.retry(parent.id) == 1
    assert [outbox.state(each.id) for each in (parent, one, two)] == [
        "waiting",
        "completed",
        "available",
    ]


def test_many_are_retried_but_no_parent_for_its_children(outbox: Outbox) -> None:
    parent = outbox.begun()
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    outbox.fail(two)
    ids = [parent.id, one.id, two.id]
    states = ["completed", "discarded"]
    done = outbox.queries.retry_batch(ids, states)
    assert done == 2
    assert outbox.state(parent.id) == "waiting"


def test_a_cancel_returns_what_it_ended_and_nothing_else(outbox: Outbox) -> None:
    parent, waiting, other = outbox.begun(), outbox.added(run_at=NOW + 9), outbox.begun()
    one, two = outbox.split(parent, "one", "two")
    assert outbox.complete(one)
    ended = outbox.queries.cancel_batch([parent.id, waiting.id])
    assert {(row.id, row.receiver, row.attempts) for row in ended} == {
        (two.id, "two", 1),
        (waiting.id, "", 0),
    }
    assert outbox.queries.cancel_batch([parent.id, waiting.id]) == []
    assert outbox.state(other.id) == "executing"


def test_what_is_cancelled_is_finished_and_nobodys(outbox: Outbox) -> None:
    running = outbox.begun()
    assert outbox.cancel(running.id, now=NOW + 1)
    row = outbox.row(running.id)
    assert (row["state"], row["finished_at"]) == ("cancelled", NOW + 1)
    # Its thread goes on: who has it, can be seen until its end.
    assert [row[column] for column in COLUMNS_OF_A_HOLDER] == ["process", None]
    assert not outbox.complete(running)
    assert not outbox.cancel(running.id)
    assert not outbox.cancel("another")
    outbox.processes.leave_cancelled("another process", [])
    outbox.processes.leave_cancelled("process", [running.id])
    assert outbox.row(running.id)["process_id"] == "process"
    outbox.processes.leave_cancelled("process", [])
    assert outbox.row(running.id)["process_id"] is None


def test_what_is_cancelled_before_it_begins_is_nobodys(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    assert outbox.cancel(claimed.id)
    row = outbox.row(claimed.id)
    assert [row[column] for column in COLUMNS_OF_A_HOLDER] == [None, None]


def test_a_cancelled_delivery_that_is_retried_while_it_runs_belongs_to_its_new_attempt(
    outbox: Outbox,
) -> None:
    running = outbox.begun()
    assert outbox.cancel(running.id)
    assert outbox.retry(running.id)
    outbox.processes.leave_cancelled("process", [])
    [again] = outbox.claim()
    assert outbox.begin(again)
    assert not outbox.complete(running)
    assert outbox.complete(again)


def test_a_fan_out_is_cancelled_with_its_unfinished_children(outbox: Outbox) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    assert outbox.cancel(parent.id)
    assert [outbox.state(each.id) for each in (parent, one, two)] == [
        "cancelled",
        "completed",
        "cancelled",
    ]
    assert outbox.key(parent.id) is None


def test_only_what_finished_long_ago_is_purged(outbox: Outbox) -> None:
    kept = [outbox.added(), outbox.claimed()]
    old, new = outbox.begun(), outbox.begun()
    outbox.complete(old, now=NOW - 10)
    outbox.complete(new, now=NOW)
    assert outbox.queries.purgeable(0) == 1
    assert outbox.purge(NOW) == 1
    assert {row["id"] for row in outbox.rows()} == {new.id, *ids(kept)}
    assert outbox.purge(NOW) == 0


def test_a_parent_that_holds_a_unique_key_is_not_purged(outbox: Outbox) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    assert outbox.purge() == 0
    outbox.complete(two)
    assert outbox.purge() == 3
    assert outbox.rows() == []


def test_a_purge_goes_in_bounded_batches_the_oldest_first(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "BATCH", 2)
    finished = [outbox.begun() for _ in range(5)]
    for age, each in enumerate(finished):
        outbox.complete(each, now=NOW - age)
    assert outbox.purge() == 2
    assert {row["id"] for row in outbox.rows()} == set(ids(finished[:3]))
    assert [outbox.purge() for _ in range(3)] == [2, 1, 0]


def test_rows_are_counted_by_state(outbox: Outbox) -> None:
    outbox.added(run_at=NOW + 1)
    outbox.complete(outbox.begun())
    outbox.claimed()
    found = outbox.queries.counts()
    assert {state: number for state, number in found.items() if number} == {
        "available": 1,
        "executing": 1,
        "completed": 1,
    }
    assert outbox.queries.count(["available", "completed"]) == 2
    assert outbox.queries.count(["available"], queue="mail") == 0
    assert outbox.queries.count(["available"], task="shop.Task") == 1


def test_the_backlog_is_what_is_unfinished_by_task_and_receiver(outbox: Outbox) -> None:
    outbox.complete(outbox.begun())
    outbox.add(envelope(receiver="one"), run_at=NOW + 5)
    outbox.add(envelope(receiver="one"), run_at=NOW + 3)
    outbox.claimed(run_at=NOW - 1)
    assert outbox.queries.unfinished() == [
        ("shop.Task", "", 1, NOW - 1),
        ("shop.Task", "one", 2, NOW + 3),
    ]


def test_the_oldest_due_waits_in_a_queue_that_is_not_paused(outbox: Outbox) -> None:
    def oldest() -> float | None:
        return outbox.queries.oldest_due()

    outbox.added(run_at=NOW + 1)
    assert oldest() is None
    outbox.added(run_at=NOW - 1)
    outbox.added(run_at=NOW - 9, queue="mail")
    assert oldest() == NOW - 9
    outbox.queries.pause("mail")
    assert oldest() == NOW - 1


def test_deliveries_are_found_newest_first_by_what_is_asked(outbox: Outbox) -> None:
    first, second, third = envelope(), envelope(), envelope(task="other.Task")
    outbox.add(first, ref="lead-7")
    outbox.add(second, now=NOW + 1, ref="lead-7", queue="mail")
    outbox.add(third, now=NOW + 2)

    def found(limit: int | None = None, **asked: Any) -> list[str]:
        rows = outbox.queries.rows(limit, **asked)
        return [row.id for row in rows]

    assert found() == [third.id, second.id, first.id]
    assert found(limit=2) == [third.id, second.id]
    assert found(ref="lead-7") == [second.id, first.id]
    assert found(ref="lead-7", queue="mail") == [second.id]
    assert found(task="other.Task") == [third.id]
    assert found(states=["completed"]) == []
    assert found(ids=[first.id, "another"]) == [first.id]
    assert found(ids=[]) == []


def test_references_that_differ_only_in_case_or_accent_are_two(outbox: Outbox) -> None:
    wanted = outbox.added(ref="cafe")
    for other in ("Cafe", "café", "cafe "):
        outbox.added(ref=other)
    rows = outbox.queries.rows(ref="cafe")
    assert [row.id for row in rows] == [wanted.id]


def test_many_are_changed_in_bounded_batches(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "BATCH", 2)
    for _ in range(3):
        outbox.added()
    outbox.added(queue="mail")
    assert list(outbox.queries.cancelling(["available"], queue="default")) == [2, 1]
    assert outbox.queries.count(["available"]) == 1
    assert list(outbox.queries.retrying(["cancelled", "executing"])) == [2, 1]
    assert outbox.queries.count(["available"]) == 4


def ids(envelopes: list[Envelope]) -> list[str]:
    return [each.id for each in envelopes]


def finish(outbox: Outbox, running: Envelope, end: str) -> object:
    """End an attempt; return what says whether it could be."""
    if end == "cancelled":
        return outbox.cancel(running.id)
    return outbox.complete(running) if end == "completed" else outbox.fail(running)


def test_an_error_is_cut_to_what_is_kept_of_it(outbox: Outbox) -> None:
    begun = outbox.begun()
    assert outbox.store.record(begun, Ending(DeliveryState.DISCARDED, error="x" * 5000))
    assert outbox.row(begun.id)["error"] == "x" * 2000


@pytest.mark.parametrize("how", ["unfinished", "younger"])
def test_no_part_of_a_fan_out_is_purged_before_its_youngest(outbox: Outbox, how: str) -> None:
    parent = outbox.begun()
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    if how == "younger":
        assert outbox.cancel(two.id, now=NOW + 100)
    outbox.purge(before=NOW + 50)
    assert {row["id"] for row in outbox.rows()} == {parent.id, one.id, two.id}
    if how == "unfinished":
        assert outbox.cancel(two.id, now=NOW + 100)
    outbox.purge(before=NOW + 150)
    assert outbox.rows() == []
