"""Limits by key do the same in each kind of database, whoever comes in between."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from async_hooks.envelope import Envelope, Hold
from async_hooks.limits import Limits
from async_hooks.outbox.keys.promotion import Sweep
from async_hooks.outbox.sql.connections import Connection
from tests.contracts.outboxes import KNOWN, NOW, Outbox, Steps, envelope, together
from tests.support.waiting import wait_until

LIMIT = Hold("limit_key", "account")
RATE = Hold("rate_key", "api")
TWO = Limits(2, None, 1)


def limited(steps: Steps, limits: Limits = TWO) -> Steps:
    steps.limits["shop.Task"] = limits
    return steps


def states(outbox: Outbox) -> dict[str, int]:
    return dict(Counter(row["state"] for row in outbox.rows()))


# -- a limit


def test_what_has_a_limit_is_held_until_it_is_promoted(outbox: Outbox) -> None:
    limited(outbox)
    added = [outbox.added(limit_key="account") for _ in range(3)]
    assert states(outbox) == {"held": 3}
    assert outbox.claim() == []
    outbox.promote(LIMIT)
    assert [each.id for each in outbox.claim()] == [each.id for each in added[:2]]
    outbox.promote(LIMIT)
    assert states(outbox) == {"executing": 2, "held": 1}


def test_a_promoted_one_takes_a_slot_before_it_is_claimed(outbox: Outbox) -> None:
    limited(outbox)
    for _ in range(3):
        outbox.added(limit_key="account")
        outbox.promote(LIMIT)
    assert states(outbox) == {"available": 2, "held": 1}


@pytest.mark.parametrize("end", ["completed", "discarded", "cancelled"])
def test_an_end_makes_room_for_the_next(outbox: Outbox, end: str) -> None:
    limited(outbox, Limits(1, None, 1))
    first, second = outbox.added(limit_key="account"), outbox.added(limit_key="account")
    outbox.promote(LIMIT)
    [running] = outbox.claim()
    assert running.id == first.id
    assert outbox.begin(running)
    if end == "completed":
        outbox.complete(running)
    elif end == "discarded":
        outbox.fail(running)
    else:
        outbox.cancel(running.id)
    outbox.promote(LIMIT)
    assert outbox.state(second.id) == "available"


@pytest.mark.parametrize("how", ["fail", "undo", "release", "retry", "rescue"])
def test_whatever_waits_again_is_held_again(outbox: Outbox, how: str) -> None:
    """No way back to the claim passes by the limit."""
    limited(outbox, Limits(1, None, 1))
    added = outbox.added(limit_key="account")
    outbox.promote(LIMIT)
    [claimed] = outbox.claim()
    if how == "release":
        assert outbox.release(claimed)
    elif how == "rescue":
        outbox.rescue("process")
    else:
        assert outbox.begin(claimed)
        if how == "fail":
            assert outbox.fail(claimed, NOW)
        elif how == "undo":
            assert outbox.undo(claimed)
        else:
            assert outbox.complete(claimed)
            assert outbox.retry(added.id) == 1
    assert outbox.state(added.id) == "held"
    outbox.promote(LIMIT)
    assert [each.id for each in outbox.claim()] == [added.id]


def test_what_is_not_due_waits_and_takes_no_slot(outbox: Outbox) -> None:
    limited(outbox, Limits(1, None, 1))
    later = outbox.added(limit_key="account", run_at=NOW + 60, priority=1)
    due = outbox.added(limit_key="account")
    assert outbox.sweep() == Sweep("", NOW + 60)
    assert (outbox.state(later.id), outbox.state(due.id)) == ("held", "available")


def test_what_is_urgent_goes_first_and_then_what_is_due_longest(outbox: Outbox) -> None:
    limited(outbox, Limits(1, None, 1))
    plain = outbox.added(limit_key="account", run_at=NOW - 1)
    older = outbox.added(limit_key="account", run_at=NOW - 2)
    urgent = outbox.added(limit_key="account", priority=1)
    order = []
    for _ in range(3):
        outbox.promote(LIMIT)
        [running] = outbox.claim()
        assert outbox.begin(running)
        outbox.complete(running)
        order.append(running.id)
    assert order == [urgent.id, older.id, plain.id]


def test_each_key_has_a_limit_of_its_own(outbox: Outbox) -> None:
    limited(outbox, Limits(1, None, 1))
    for key in ("a", "b", "a", "b"):
        outbox.added(limit_key=key)
    outbox.sweep()
    assert sorted(each.limit_key or "" for each in outbox.claim()) == ["a", "b"]


def test_a_sweep_goes_through_all_keys_by_pages(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_hooks.outbox.keys.held.PAGE", 3)
    monkeypatch.setattr("async_hooks.outbox.keys.promotion.PAGE", 3)
    limited(outbox)
    for number in range(7):
        outbox.added(limit_key=f"key-{number}")
    after, pages = "", []
    for _ in range(3):
        after, _due = outbox.sweep(after=after)
        pages.append((after, states(outbox)["available"]))
    assert pages == [("key-2", 3), ("key-5", 6), ("", 7)]


def test_what_this_code_does_not_know_is_left_to_others(outbox: Outbox) -> None:
    limited(outbox)
    unknown = outbox.added(limit_key="account", receiver="gone")
    known = outbox.added(limit_key="account")
    other = outbox.added(limit_key="other", task="shop.Other")
    outbox.sweep()
    found = [outbox.state(each.id) for each in (unknown, known, other)]
    assert found == ["held", "available", "held"]


def test_what_lost_its_limit_in_a_release_runs(outbox: Outbox) -> None:
    limited(outbox, Limits(None, None, 1))
    for _ in range(3):
        outbox.added(limit_key="account")
    outbox.sweep()
    assert states(outbox) == {"available": 3}


@pytest.mark.parametrize("why", ["paused", "unknown"])
def test_a_promoted_one_that_nobody_claims_gives_its_slot_back(outbox: Outbox, why: str) -> None:
    limited(outbox, Limits(1, None, 1))
    first = outbox.added(limit_key="account", receiver="one", queue="mail")
    outbox.promote(LIMIT)
    second = outbox.added(limit_key="account")
    assert outbox.state(first.id) == "available"
    kinds = frozenset(KNOWN) - ({("shop.Task", "one")} if why == "unknown" else set())
    if why == "paused":
        outbox.queries.pause("mail")
    for _ in range(2):
        outbox.promotion.sweep("", kinds)
    assert (outbox.state(first.id), outbox.state(second.id)) == ("held", "available")


def test_a_receivers_run_counts_as_well(outbox: Outbox) -> None:
    limited(outbox, Limits(1, None, 1))
    outbox.added(limit_key="account")
    outbox.promote(LIMIT)
    [parent] = outbox.claim()
    assert outbox.begin(parent)
    assert outbox.complete(parent, additions=[parent.for_receiver(n) for n in ("one", "two")])
    outbox.promote(LIMIT)
    assert states(outbox) == {"waiting": 1, "available": 1, "held": 1}


def test_keys_that_nobody_uses_are_forgotten(outbox: Outbox) -> None:
    limited(outbox, Limits(None, 1.0, 1))
    outbox.added(rate_key="api")
    begin_all(outbox, now=NOW)
    count = "SELECT count(*) FROM async_hooks_keys"
    with outbox.at(NOW + 100):
        outbox.promotion.purge(100)
        assert scalar(outbox, count) == 1
        outbox.promotion.purge(98)
        assert scalar(outbox, count) == 0
    outbox.added(rate_key="api")
    assert len(begin_all(outbox, now=NOW + 100)) == 1


def scalar(outbox: Outbox, sql: str) -> int:
    with outbox.database.engine.connect() as connection:
        found: int = connection.exec_driver_sql(sql).scalar_one()
        return found


def test_of_two_who_promote_at_once_the_second_sees_what_the_first_did(outbox: Outbox) -> None:
    """Counted by a snapshot older than the lock, each would fill the same slots."""
    for _ in range(5):
        outbox.added(limit_key="account")

    def promote(steps: Steps) -> None:
        limited(steps).promote(LIMIT)

    outbox.meanwhile(promote, promote)
    assert states(outbox) == {"available": 2, "held": 3}


def test_many_who_promote_claim_and_end_at_once_never_exceed_a_limit(outbox: Outbox) -> None:
    """Each counts, as it begins, how many of its key run: never three, and none is left over."""
    total = 60
    for number in range(total):
        outbox.added(limit_key=f"key-{number % 3}")
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock, done = threading.Lock(), list[str]()

    def work() -> None:
        own = limited(Steps(outbox.another(patience=30, is_own=outbox.is_own)))
        while len(done) < total:
            own.sweep()
            for claimed in own.claim(2):
                key = claimed.limit_key or ""
                assert own.begin(claimed)
                with lock:
                    running[key] += 1
                    most[key] = max(most[key], running[key])
                with lock:
                    running[key] -= 1
                assert own.complete(claimed)
                done.append(claimed.id)
        own.database.engine.dispose()

    together(*[work] * 6)
    assert sorted(set(done)) == sorted(done)
    assert states(outbox) == {"completed": total}
    assert max(most.values()) <= 2


# -- a rate


def begin_all(outbox: Outbox, *, now: float) -> list[str]:
    """Begin what is due, and let the next have its turn, until none has."""
    begun: list[str] = []
    while True:
        outbox.sweep(now=now)
        claimed = outbox.claim(now=now)
        if not claimed:
            return begun
        for each in claimed:
            assert outbox.begin(each, now=now)
            begun.append(each.id)


def test_a_rate_spaces_its_runs_evenly(outbox: Outbox) -> None:
    limited(outbox, Limits(None, 0.5, 1))
    for _ in range(4):
        outbox.added(rate_key="api")
    assert [len(begin_all(outbox, now=NOW + at)) for at in (0, 0.4, 0.5, 0.9, 1)] == [
        *(1, 0, 1, 0, 1)
    ]


def test_a_rate_lets_a_burst_begin_after_a_pause(outbox: Outbox) -> None:
    limited(outbox, Limits(None, 1.0, 3))
    for _ in range(6):
        outbox.added(rate_key="api")
    assert [len(begin_all(outbox, now=NOW + at)) for at in (0, 0.9, 1, 3)] == [3, 0, 1, 2]


@pytest.mark.parametrize("burst", [1, 4])
def test_in_no_window_more_begin_than_the_rate_and_its_burst(outbox: Outbox, burst: int) -> None:
    """Also where everybody stood still for a while in between, with some promoted before."""
    number, window = 10, 60.0
    limited(outbox, Limits(None, window / number, burst))
    for _ in range(80):
        outbox.added(rate_key="api")
    begun: list[float] = []
    steps = [0.1 * step for step in range(2400)]
    stalls = [(20, 95), (110, 111), (130, 180)]
    for at in steps[::7]:
        is_stalled = any(since <= at < until for since, until in stalls)
        if is_stalled:
            outbox.sweep(now=NOW + at)
        else:
            begun += [at] * len(begin_all(outbox, now=NOW + at))
    counts = [sum(since <= at < since + window for at in begun) for since in begun]
    assert max(counts) <= number + burst
    assert max(counts) >= number


def test_one_that_did_not_begin_keeps_the_next_waiting(outbox: Outbox) -> None:
    limited(outbox, Limits(None, 1.0, 1))
    outbox.added(rate_key="api")
    second = outbox.added(rate_key="api")
    outbox.promote(RATE)
    [late] = outbox.claim()
    outbox.promote(RATE, now=NOW + 9)
    assert outbox.state(second.id) == "held"
    assert outbox.begin(late, now=NOW + 9)
    outbox.promote(RATE, now=NOW + 9)
    assert (outbox.state(second.id), outbox.row(second.id)["run_at"]) == ("available", NOW + 9)


def test_a_turn_that_comes_soon_is_given_ahead(outbox: Outbox) -> None:
    limited(outbox, Limits(None, 10.0, 1))
    outbox.added(rate_key="api")
    second = outbox.added(rate_key="api")
    begin_all(outbox, now=NOW)
    outbox.promote(RATE, now=NOW + 8.5)
    assert outbox.state(second.id) == "held"
    outbox.promote(RATE, now=NOW + 9.5)
    assert (outbox.state(second.id), outbox.row(second.id)["run_at"]) == ("available", NOW + 10)
    assert outbox.claim(now=NOW + 9.9) == []


def test_a_clock_that_was_set_back_stops_no_rate(outbox: Outbox) -> None:
    limited(outbox, Limits(None, 10.0, 1))
    outbox.added(rate_key="api")
    begin_all(outbox, now=NOW)
    for _ in range(2):
        outbox.added(rate_key="api", now=NOW - 3600)
    counts = [len(begin_all(outbox, now=NOW - 3600 + at)) for at in (0, 9, 10)]
    assert counts == [1, 0, 1]


def test_of_two_who_promote_by_one_rate_the_second_waits_for_its_turn(outbox: Outbox) -> None:
    for _ in range(3):
        outbox.added(rate_key="api")

    def promote(steps: Steps) -> None:
        limited(steps, Limits(None, 0.1, 1)).promote(RATE)

    outbox.meanwhile(promote, promote)
    assert states(outbox) == {"available": 1, "held": 2}


def test_a_rate_passes_by_those_whose_limit_is_full(outbox: Outbox) -> None:
    limited(outbox, Limits(1, 1.0, 1))
    for key in ("a", "a", "b"):
        outbox.added(limit_key=key, rate_key="api")
    begun = [*begin_all(outbox, now=NOW), *begin_all(outbox, now=NOW + 1)]
    assert [outbox.row(each)["limit_key"] for each in begun] == ["a", "b"]
    assert begin_all(outbox, now=NOW + 2) == []


# -- unique until it starts


def waiting(outbox: Outbox, **members: Any) -> Envelope:
    return outbox.added(unique_key="key", waiting_key="key", **members)


def test_a_key_that_holds_until_the_start_is_free_once_it_is_claimed(outbox: Outbox) -> None:
    first, lost = waiting(outbox), envelope()
    assert outbox.add(lost, unique_key="key", waiting_key="key") == {lost.id: first.id}
    outbox.claim()
    second = waiting(outbox)
    assert outbox.key(first.id) is None
    assert outbox.key(second.id) == "key"


def test_a_launch_while_another_is_being_claimed_is_a_new_one(outbox: Outbox) -> None:
    first, second = waiting(outbox), envelope()
    lost = outbox.meanwhile(
        lambda c: c.claim(), lambda c: c.add(second, unique_key="key", waiting_key="key")
    )
    assert lost == {}
    assert (outbox.state(first.id), outbox.state(second.id)) == ("executing", "available")


def test_what_counts_for_a_launch_is_not_claimed_before_that_is_committed(outbox: Outbox) -> None:
    """Else it would run with what was there before."""
    first, second = waiting(outbox), envelope()
    claimed = outbox.meanwhile(
        lambda c: c.add(second, unique_key="key", waiting_key="key"),
        lambda c: [each.id for each in c.claim()],
    )
    # SQLite's second waits for the commit; elsewhere what is locked is passed by.
    assert claimed == ([first.id] if outbox.kind == "sqlite" else [])


@pytest.mark.parametrize("how", ["release", "fail", "undo", "rescue"])
@pytest.mark.parametrize("has_newer", [False, True])
def test_what_waits_again_takes_its_key_again_or_is_superseded(
    outbox: Outbox, how: str, has_newer: bool
) -> None:
    first = waiting(outbox)
    [claimed] = outbox.claim()
    newer = waiting(outbox, now=NOW + 1) if has_newer else None
    if how == "release":
        outbox.release(claimed)
    elif how == "rescue":
        outbox.rescue("process")
    else:
        assert outbox.begin(claimed)
        outbox.fail(claimed, NOW) if how == "fail" else outbox.undo(claimed)
    row = outbox.row(first.id)
    if newer is None:
        assert (row["state"], row["unique_key"]) == ("available", "key")
    else:
        assert (row["state"], row["unique_key"]) == ("completed", None)
        assert row["error"] == f"Superseded by delivery {newer.id}."
        assert row["finished_at"] == NOW
        assert outbox.key(newer.id) == "key"


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_that_wait_again_the_newer_runs(outbox: Outbox, order: int) -> None:
    older = waiting(outbox)
    [first] = outbox.claim()
    newer = waiting(outbox, now=NOW + 1)
    [second] = outbox.claim(now=NOW + 1)
    for each in (first, second)[::order]:
        outbox.release(each)
    assert (outbox.state(older.id), outbox.state(newer.id)) == ("completed", "available")
    assert (outbox.key(older.id), outbox.key(newer.id)) == (None, "key")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_launch_at_the_moment_when_one_is_given_back_leaves_one(
    outbox: Outbox, is_first: bool
) -> None:
    first, second = waiting(outbox), envelope()
    [claimed] = outbox.claim()

    def give_back(steps: Steps) -> object:
        return steps.release(claimed)

    def launch(steps: Steps) -> object:
        return steps.add(second, unique_key="key", waiting_key="key", now=NOW + 1)

    steps = (give_back, launch) if is_first else (launch, give_back)
    with suppress(Exception):  # The second one's transaction is the test's own: begun once.
        outbox.meanwhile(*steps)
    if outbox.state(first.id) == "executing":
        assert outbox.release(claimed)
    outbox.add(second, unique_key="key", waiting_key="key", now=NOW + 1)
    assert [row["unique_key"] for row in outbox.rows() if row["state"] == "available"] == ["key"]


def test_many_who_launch_give_back_and_run_at_once_leave_one_waiting_and_lose_none(
    outbox: Outbox,
) -> None:
    """After the last launch has returned, one more begins: it reads what that wrote."""
    begun, launched = [0], [0]
    ended = threading.Event()
    version = [0]

    def launch() -> None:
        own = Steps(outbox.another(patience=30, is_own=outbox.is_own))
        for _ in range(15):
            version[0] += 1
            own.add(envelope(), unique_key="key", waiting_key="key")
            launched[0] += 1
        own.database.engine.dispose()

    def run() -> None:
        own = Steps(outbox.another(patience=30, is_own=outbox.is_own))
        turn = 0
        while not (ended.is_set() and not outbox.queries.count(["available", "executing"])):
            for claimed in own.claim(1, process=f"process {threading.get_ident()}"):
                turn += 1
                if turn % 3 == 0:
                    own.release(claimed)
                    continue
                assert own.begin(claimed)
                begun[0] = max(begun[0], version[0])
                own.fail(claimed, NOW) if turn % 5 == 0 else own.complete(claimed)
        own.database.engine.dispose()

    def launch_all() -> None:
        try:
            together(*[launch] * 3)
        finally:
            ended.set()

    together(launch_all, run, run)
    assert begun[0] == version[0]
    assert launched[0] == 45
    assert set(states(outbox)) == {"completed"}


# -- unique for a while


def test_a_key_holds_beyond_the_end_and_the_loser_learns_the_winners_id(outbox: Outbox) -> None:
    winner = outbox.begun(unique_key="key", unique_for=60.0)
    outbox.complete(winner, now=NOW + 5)
    lost = envelope()
    assert outbox.add(lost, unique_key="key", now=NOW + 64.9) == {lost.id: winner.id}
    with outbox.at(NOW + 64.9):
        assert outbox.store.unfinished("key") == winner.id
    with outbox.at(NOW + 65):
        assert outbox.store.unfinished("key") is None
    assert outbox.add(lost, unique_key="key", now=NOW + 65) == {}
    assert (outbox.key(winner.id), outbox.key(lost.id)) == (None, "key")


def test_a_purge_leaves_what_still_has_its_key(outbox: Outbox) -> None:
    outbox.complete(outbox.begun(unique_key="key", unique_for=60.0))
    assert outbox.purge(NOW + 59) == 0
    assert outbox.purge(NOW + 61) == 1


def test_a_key_holds_beyond_the_end_of_the_last_receiver(outbox: Outbox) -> None:
    parent = outbox.begun(unique_key="key", unique_for=60.0)
    one, two = outbox.split(parent, "one", "two")
    lost = envelope()
    outbox.complete(one, now=NOW + 100)
    assert outbox.add(lost, unique_key="key", now=NOW + 100) == {lost.id: parent.id}
    outbox.complete(two, now=NOW + 200)
    assert outbox.add(lost, unique_key="key", now=NOW + 259) == {lost.id: parent.id}
    assert outbox.add(lost, unique_key="key", now=NOW + 260) == {}


def test_what_is_retried_by_hand_keeps_its_key_as_long_as_it_takes(outbox: Outbox) -> None:
    winner = outbox.begun(unique_key="key", unique_for=60.0)
    outbox.complete(winner)
    outbox.retry(winner.id)
    lost = envelope()
    assert outbox.add(lost, unique_key="key", now=NOW + 1000) == {lost.id: winner.id}


def test_a_cancelled_ones_key_is_free_at_once(outbox: Outbox) -> None:
    winner = outbox.begun(unique_key="key", unique_for=60.0)
    outbox.cancel(winner.id)
    assert outbox.add(envelope(), unique_key="key") == {}


# -- debounced


def debounced(number: int, **members: Any) -> Envelope:
    return envelope(
        body=f'{{"n":{number}}}',
        unique_key="key",
        waiting_key="key",
        debounce=(2.0, 30.0),
        **members,
    )


def launch(outbox: Outbox, number: int, at: float) -> str:
    made = debounced(number)
    with outbox.at(NOW + at):
        return outbox.store.add([made]).get(made.id, made.id)


def test_the_newest_data_runs_once_when_nothing_came_for_a_while(outbox: Outbox) -> None:
    first = launch(outbox, 1, 0)
    assert launch(outbox, 2, 1) == launch(outbox, 3, 2.5) == first
    [row] = outbox.rows()
    assert (row["body"], row["run_at"]) == ('{"n":3}', NOW + 4.5)
    assert outbox.claim(now=NOW + 4.4) == []
    assert [each.body for each in outbox.claim(now=NOW + 4.5)] == ['{"n":3}']


def test_a_steady_burst_is_put_off_no_longer_than_its_cap(outbox: Outbox) -> None:
    second = 0
    while not outbox.claim(now=NOW + second):
        launch(outbox, second, second)
        second += 1
    assert second == 30
    assert [row["body"] for row in outbox.rows()] == ['{"n":29}']


def test_a_launch_while_the_former_is_being_claimed_is_a_row_of_its_own(outbox: Outbox) -> None:
    """The change of what waited changes nothing then, and the newest data would be nowhere."""
    first = launch(outbox, 1, 0)

    newer, other = debounced(2), Steps(outbox.another(patience=20))

    def add() -> dict[str, str]:
        with other.at(NOW + 2):
            return other.store.add([newer])

    with ThreadPoolExecutor() as threads:

        def claim(connection: Connection) -> Future[dict[str, str]]:
            assert outbox._within(connection).claim(now=NOW + 2)
            adding = threads.submit(add)
            wait_until(lambda: adding.done() or outbox._somebody_waits(), every=0.15)
            return adding

        assert outbox.database.transaction(claim).result(30) == {}
    other.database.engine.dispose()
    assert (outbox.state(first), outbox.state(newer.id)) == ("executing", "available")
    assert outbox.row(newer.id)["run_at"] == NOW + 4


def test_a_retry_that_waits_begins_anew_with_newer_data(outbox: Outbox) -> None:
    first = launch(outbox, 1, 0)
    [claimed] = outbox.claim(now=NOW + 2)
    assert outbox.begin(claimed)
    outbox.fail(claimed, NOW + 3600, now=NOW + 40)
    assert launch(outbox, 2, 50) == first
    row = outbox.row(first)
    assert (row["body"], row["run_at"]) == ('{"n":2}', NOW + 52)
    assert (row["attempts"], row["failures"]) == (0, 0)


def test_launches_are_merged_as_the_task_says(outbox: Outbox) -> None:
    outbox.store._merge_of = lambda each: lambda older: f"{older[:-1]},{each.body[1:]}"
    for number, body in enumerate(('{"a":1}', '{"b":2}', '{"c":3}')):
        outbox.store.add([debounced(number)._replace(body=body)])
    assert [row["body"] for row in outbox.rows()] == ['{"a":1,"b":2,"c":3}']
    outbox.store._merge_of = lambda each: None


def test_of_launches_that_are_merged_at_once_none_is_left_out(outbox: Outbox) -> None:
    def add(number: int) -> None:
        own = Steps(outbox.another(patience=30, is_own=outbox.is_own))
        own.store._merge_of = lambda each: lambda older: f"{older[:-1]},{each.body[1:]}"
        own.store.add([debounced(number)._replace(body=f'{{"n{number}":1}}')])
        own.database.engine.dispose()

    together(*(lambda number=number: add(number) for number in range(6)))
    [row] = outbox.rows()
    assert all(f'"n{number}":1' in row["body"] for number in range(6))


def test_what_is_debounced_is_added_beside_what_is_not(outbox: Outbox) -> None:
    plain = envelope()
    assert outbox.store.add([debounced(1), plain]) == {}
    assert len(outbox.rows()) == 2
