"""Every step of a delivery's life does the same in each kind of database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from async_hooks.delivery import Addition, Terms
from async_hooks.envelope import Envelope, Origin
from async_hooks.errors import DataError
from async_hooks.outbox import queries as upkeep
from async_hooks.outbox import store
from async_hooks.outbox.store import Hold
from tests.contracts.outboxes import NOW, Outbox, an_outbox, envelope
from tests.support.databases import KINDS

COLUMNS_OF_A_HOLDER = ("relay", "lease")

COLLATION = "Texts are compared as the server's collation says."


@pytest.fixture(scope="module", params=[False, True], ids=["transactions", "statements"])
def by_statements(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.fixture(scope="module", params=KINDS)
def tables(
    request: pytest.FixtureRequest, tmp_path_factory: Any, by_statements: bool
) -> Iterator[Outbox]:
    folder = tmp_path_factory.mktemp(request.param)
    with an_outbox(request.param, folder, by_statements=by_statements) as made:
        yield made


@pytest.fixture
def outbox(tables: Outbox) -> Outbox:
    tables.clear()
    return tables


# -- adding


def test_what_is_added_is_there_as_it_was_said(outbox: Outbox) -> None:
    made = envelope(receiver="one", priority=3)
    assert outbox.add(made, queue="mail", run_at=NOW + 5.25, ref="lead-7") == {}
    row = outbox.row(made.id)
    assert row["state"] == "available"
    assert (row["queue"], row["priority"], row["receiver"]) == ("mail", 3, "one")
    assert (row["run_at"], row["created_at"], row["ref"]) == (NOW + 5.25, NOW, "lead-7")
    assert (row["attempts"], row["crashes"], row["lease"], row["relay"]) == (0, 0, None, None)


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


def test_what_is_added_with_a_hold_is_claimed_already(outbox: Outbox) -> None:
    made = envelope()
    outbox.add(made, hold=Hold("relay", "lease"))
    assert outbox.claim() == []
    assert outbox.begin(made._replace(lease="lease"))


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
    assert outbox.database.read(lambda c: store.unfinished(c, "key")) == winner.id
    assert outbox.database.read(lambda c: store.unfinished(c, "other")) is None


# -- a fan-out


@pytest.mark.parametrize("last", ["completed", "discarded", "cancelled"])
def test_a_parents_unique_key_is_held_until_its_last_child_finishes(
    outbox: Outbox, last: str
) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    assert (outbox.state(parent.id), outbox.key(parent.id)) == ("completed", "key")
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
    [orphan] = outbox.claimed_by("relay")
    assert outbox.fail(orphan.envelope, crashed=True)
    assert outbox.key(parent.id) is None


def test_a_second_split_is_harmless(outbox: Outbox) -> None:
    parent = outbox.begun()
    children = [Addition(parent.for_receiver(name), Terms()) for name in ("one", "two")]
    outbox.add(*(child.envelope for child in children))
    [ran] = outbox.claim(1)
    outbox.begin(ran)
    outbox.complete(ran)
    assert outbox.complete(parent, additions=children)
    assert outbox.state(ran.id) == "completed"
    assert len(outbox.rows()) == 3


def test_what_a_stale_attempt_was_split_into_is_not_kept(outbox: Outbox) -> None:
    stale = outbox.begun()
    outbox.cancel(stale.id)
    launched = Addition(envelope(), Terms())
    child = Addition(stale.for_receiver("one"), Terms())
    assert not outbox.complete(stale, additions=[launched, child])
    assert [row["id"] for row in outbox.rows()] == [stale.id]


def test_what_an_attempt_launched_is_kept_with_its_completion(outbox: Outbox) -> None:
    running = outbox.begun(unique_key="key")
    launched = envelope()
    assert outbox.complete(running, additions=[Addition(launched, Terms(queue="mail"))])
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
    outbox.database.write(lambda c: upkeep.pause(c, "Mail", now=NOW))
    assert ids(outbox.claim()) == [small.id]
    outbox.database.write(lambda c: upkeep.pause(c, "mail", now=NOW))
    assert outbox.database.read(store.paused) == ["Mail", "mail"]


def test_kinds_that_differ_only_in_case_are_two(outbox: Outbox) -> None:
    outbox.add(envelope(receiver="ONE"))
    assert outbox.claim() == []


def test_a_paused_queue_is_left_alone_until_it_is_resumed(outbox: Outbox) -> None:
    paused, other = outbox.added(queue="mail"), outbox.added()
    for _ in range(2):  # Twice is as good as once.
        outbox.database.write(lambda c: upkeep.pause(c, "mail", now=NOW))
    assert outbox.database.read(store.paused) == ["mail"]
    assert ids(outbox.claim()) == [other.id]
    outbox.database.write(lambda c: upkeep.resume(c, "mail"))
    assert ids(outbox.claim()) == [paused.id]


def test_unknown_tasks_and_receivers_are_left_alone(outbox: Outbox) -> None:
    outbox.add(envelope(task="other.Task"), envelope(receiver="three"), envelope(task="one"))
    assert outbox.claim() == []
    assert outbox.claim(kinds=[]) == []
    assert len(outbox.claim(kinds=[("other.Task", ""), ("shop.Task", "three")])) == 2


def test_what_is_not_due_is_left_alone_until_then(outbox: Outbox) -> None:
    later = outbox.added(run_at=NOW + 5)
    assert outbox.claim() == []
    assert outbox.database.read(store.queue_heads) == [store.QueueHead("default", 10, NOW + 5)]
    assert ids(outbox.claim(now=NOW + 5)) == [later.id]


def test_no_more_than_the_limit_is_claimed(outbox: Outbox) -> None:
    for queue in ("a", "b"):
        for priority in (1, 2):
            outbox.add(*(envelope(priority=priority) for _ in range(3)), queue=queue)
    assert [len(outbox.claim(limit)) for limit in (0, 1, 4, 5, 100, 100)] == [0, 1, 4, 5, 2, 0]


def test_what_is_claimed_says_whose_it_is(outbox: Outbox) -> None:
    claimed = outbox.claimed()
    row = outbox.row(claimed.id)
    assert (row["state"], row["relay"], row["lease"]) == ("executing", "relay", claimed.lease)
    assert (row["attempts"], row["started_at"], claimed.attempt) == (0, None, 1)


def test_a_row_that_cannot_be_read_is_discarded_and_the_others_are_claimed(outbox: Outbox) -> None:
    spoilt, sound = envelope(body="[1]"), envelope()
    outbox.add(spoilt, sound)
    assert ids(outbox.claim()) == [sound.id]
    assert outbox.state(spoilt.id) == "discarded"


@pytest.mark.parametrize(
    "text", ["x" * 2**20, "ünï → 日本語 🍕👩‍👩‍👧" * 10_000, "\\\"'%s:x\n\t\u2028"],
    ids=["a MiB", "unicode", "quotes"],
)  # fmt: skip
def test_bodies_come_out_as_they_went_in(outbox: Outbox, text: str) -> None:
    body = json.dumps({"text": text}, ensure_ascii=False)
    made = envelope(
        body=body,
        user={"id": text[:50]},
        carried=json.dumps({"locale": text[:50]}),
        origin=Origin("https", "ä.example", "/shop"),
        depth=3,
        budget=7,
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
    outbox.begin(first, relay="executor")
    outbox.begin(second, relay=None)
    assert outbox.row(first.id)["relay"] == "executor"
    assert outbox.row(second.id)["relay"] == "relay"


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
    assert outbox.give_back(claimed)
    row = outbox.row(claimed.id)
    assert (row["state"], row["attempts"], row["run_at"]) == ("available", 0, NOW - 7)
    assert [row[column] for column in COLUMNS_OF_A_HOLDER] == [None, None]
    assert not outbox.give_back(claimed)


def test_what_has_begun_is_given_back_only_if_that_is_said(outbox: Outbox) -> None:
    running = outbox.begun()
    assert not outbox.give_back(running)
    assert outbox.give_back(running, begun=True, run_at=NOW + 9)
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
    child = Addition(zombie.for_receiver("one"), Terms())
    return [
        outbox.begin(zombie, relay="zombie"),
        outbox.complete(zombie, result="0", additions=[child, Addition(envelope(), Terms())]),
        outbox.fail(zombie, NOW),
        outbox.fail(zombie, crashed=True),
        outbox.give_back(zombie),
        outbox.give_back(zombie, begun=True, run_at=NOW + 1),
    ]


@pytest.mark.parametrize("since", ["nothing", "claimed", "begun", "completed", "discarded"])
@pytest.mark.parametrize("had_begun", [False, True])
def test_who_was_rescued_from_changes_nothing_any_more(
    outbox: Outbox, had_begun: bool, since: str
) -> None:
    zombie = outbox.begun() if had_begun else outbox.claimed()
    outbox.bury("relay")
    if since != "nothing":
        [again] = outbox.claim(relay="survivor")
        assert again.attempt == (2 if had_begun else 1)
        if since != "claimed":
            outbox.begin(again, relay="survivor")
        if since in ("completed", "discarded"):
            assert outbox.complete(again) if since == "completed" else outbox.fail(again)
    before = outbox.rows()
    assert not any(every_write(outbox, zombie))
    assert outbox.rows() == before


def test_who_was_retried_meanwhile_changes_nothing_any_more(outbox: Outbox) -> None:
    zombie = outbox.begun()
    outbox.cancel(zombie.id)
    outbox.retry(zombie.id)
    [again] = outbox.claim(relay="survivor")
    assert again.attempt == zombie.attempt
    outbox.begin(again, relay="survivor")
    before = outbox.rows()
    assert not any(every_write(outbox, zombie))
    assert outbox.rows() == before


# -- relays


def test_what_a_relay_holds_is_known_and_whether_it_has_begun(outbox: Outbox) -> None:
    waits, runs = outbox.claimed(), outbox.begun()
    outbox.added()
    found = {orphan.envelope.id: orphan for orphan in outbox.claimed_by("relay")}
    assert found.keys() == {waits.id, runs.id}
    assert (found[waits.id].has_begun, found[runs.id].has_begun) == (False, True)
    for held in (waits, runs):
        orphan = found[held.id].envelope
        assert (orphan.attempt, orphan.lease) == (held.attempt, held.lease)
    assert outbox.claimed_by("another") == []


def test_what_was_given_back_and_claimed_again_has_not_begun(outbox: Outbox) -> None:
    outbox.give_back(outbox.begun(), begun=True)
    outbox.claim(relay="another")
    [orphan] = outbox.claimed_by("another")
    assert not orphan.has_begun


def heartbeat(outbox: Outbox, relay: str, now: float = NOW, **said: Any) -> list[upkeep.ProcessRow]:
    said = {"host": "shop", "pid": 7, "host_id": None, "problem": None, **said}
    return outbox.database.write(lambda c: upkeep.heartbeat(c, relay, now=now, **said))


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
    assert [seen.id for seen in heartbeat(outbox, "one")] == ["relay"]


def test_who_signed_off_is_not_seen_any_more(outbox: Outbox) -> None:
    heartbeat(outbox, "one")
    outbox.database.write(lambda c: upkeep.deregister(c, "one"))
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
    assert outbox.retry(parent.id) == 1
    assert [outbox.state(each.id) for each in (parent, one, two)] == [
        "completed",
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
    done = outbox.database.write(lambda c: upkeep.retry_each(c, ids, states, now=NOW))
    assert done == 2
    assert outbox.state(parent.id) == "completed"


def test_what_is_cancelled_is_finished_and_nobodys(outbox: Outbox) -> None:
    running = outbox.begun()
    assert outbox.cancel(running.id, now=NOW + 1)
    row = outbox.row(running.id)
    assert (row["state"], row["finished_at"]) == ("cancelled", NOW + 1)
    assert [row[column] for column in COLUMNS_OF_A_HOLDER] == [None, None]
    assert not outbox.complete(running)
    assert not outbox.cancel(running.id)
    assert not outbox.cancel("another")


def test_a_fan_out_is_cancelled_with_its_unfinished_children(outbox: Outbox) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    assert outbox.cancel(parent.id)
    assert [outbox.state(each.id) for each in (parent, one, two)] == [
        "completed",
        "completed",
        "cancelled",
    ]
    assert outbox.key(parent.id) is None


def test_only_what_finished_long_ago_is_purged(outbox: Outbox) -> None:
    kept = [outbox.added(), outbox.claimed()]
    old, new = outbox.begun(), outbox.begun()
    outbox.complete(old, now=NOW - 10)
    outbox.complete(new, now=NOW)
    assert outbox.database.read(lambda c: upkeep.count_old(c, before=NOW)) == 1
    assert outbox.purge(NOW) == 1
    assert {row["id"] for row in outbox.rows()} == {new.id, *ids(kept)}
    assert outbox.purge(NOW) == 0


def test_a_parent_that_holds_a_unique_key_is_not_purged(outbox: Outbox) -> None:
    parent = outbox.begun(unique_key="key")
    one, two = outbox.split(parent, "one", "two")
    outbox.complete(one)
    assert outbox.purge() == 1
    outbox.complete(two)
    assert outbox.purge() == 2
    assert outbox.rows() == []


def test_a_purge_goes_in_bounded_batches_the_oldest_first(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "BATCH", 2)
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
    found = outbox.database.read(upkeep.counts)
    assert found == {"available": 1, "executing": 1, "completed": 1}
    assert outbox.database.read(lambda c: upkeep.count(c, ["available", "completed"])) == 2
    assert outbox.database.read(lambda c: upkeep.count(c, ["available"], queue="mail")) == 0
    assert outbox.database.read(lambda c: upkeep.count(c, ["available"], task="shop.Task")) == 1


def test_the_backlog_is_what_is_unfinished_by_task_and_receiver(outbox: Outbox) -> None:
    outbox.complete(outbox.begun())
    outbox.add(envelope(receiver="one"), run_at=NOW + 5)
    outbox.add(envelope(receiver="one"), run_at=NOW + 3)
    outbox.claimed(run_at=NOW - 1)
    assert outbox.database.read(upkeep.backlog) == [
        ("shop.Task", "", 1, NOW - 1),
        ("shop.Task", "one", 2, NOW + 3),
    ]


def test_the_oldest_due_waits_in_a_queue_that_is_not_paused(outbox: Outbox) -> None:
    def oldest() -> float | None:
        return outbox.database.read(lambda c: upkeep.oldest_due(c, now=NOW))

    outbox.added(run_at=NOW + 1)
    assert oldest() is None
    outbox.added(run_at=NOW - 1)
    outbox.added(run_at=NOW - 9, queue="mail")
    assert oldest() == NOW - 9
    outbox.database.write(lambda c: upkeep.pause(c, "mail", now=NOW))
    assert oldest() == NOW - 1


def test_deliveries_are_found_newest_first_by_what_is_asked(outbox: Outbox) -> None:
    first, second, third = envelope(), envelope(), envelope(task="other.Task")
    outbox.add(first, ref="lead-7")
    outbox.add(second, now=NOW + 1, ref="lead-7", queue="mail")
    outbox.add(third, now=NOW + 2)

    def found(**asked: Any) -> list[str]:
        rows = outbox.database.read(lambda c: upkeep.find(c, **asked))
        return [row.id for row in rows]

    assert found() == [third.id, second.id, first.id]
    assert found(limit=2) == [third.id, second.id]
    assert found(ref="lead-7") == [second.id, first.id]
    assert found(ref="lead-7", queue="mail") == [second.id]
    assert found(task="other.Task") == [third.id]
    assert found(state="completed") == []
    assert found(ids=[first.id, "another"]) == [first.id]
    assert found(ids=[]) == []


def test_references_that_differ_only_in_case_or_accent_are_two(outbox: Outbox) -> None:
    wanted = outbox.added(ref="cafe")
    for other in ("Cafe", "café", "cafe "):
        outbox.added(ref=other)
    rows = outbox.database.read(lambda c: upkeep.find(c, ref="cafe"))
    assert [row.id for row in rows] == [wanted.id]


def test_ids_come_in_batches_one_after_another(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "BATCH", 2)
    added = [outbox.added().id for _ in range(3)]
    ask = upkeep.ids_of
    assert outbox.database.read(lambda c: ask(c, ["available"])) == added[:2]
    assert outbox.database.read(lambda c: ask(c, ["available"], after=added[1])) == added[2:]


def ids(envelopes: list[Envelope]) -> list[str]:
    return [each.id for each in envelopes]


def finish(outbox: Outbox, running: Envelope, end: str) -> object:
    """End an attempt; return what says whether it could be."""
    if end == "cancelled":
        return outbox.cancel(running.id)
    return outbox.complete(running) if end == "completed" else outbox.fail(running)
