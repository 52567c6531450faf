"""The relay's loop over a real SQLite outbox, turn by turn: no thread of its own, no real time."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from async_hooks import AsyncHooks, AsyncTask, Delivery, DeliveryState
from async_hooks.delivery import Addition, Terms
from async_hooks.envelope import Envelope
from async_hooks.errors import ConnectionBroken, TimedOut, TransportError, Unreachable
from async_hooks.outbox.database import Database, engine_for
from async_hooks.outbox.ledger import Ledger
from async_hooks.relay import claims
from async_hooks.relay.claims import Claims
from async_hooks.state import state_of
from async_hooks.verdict import Outcome, Verdict
from tests.support.apps import make_task, plain_app
from tests.support.facts import Facts
from tests.support.waiting import wait_until

DONE = Verdict(Outcome.COMPLETED)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


class Shop:
    """An app with one task, whose launches wait in its outbox; nothing relays but the tests do."""

    def __init__(self, folder: Path, action: str, **config: Any) -> None:
        self.path = folder / "outbox.db"
        self.app = plain_app(
            ASYNC_HOOKS_OUTBOX=f"sqlite:///{self.path}",
            ASYNC_HOOKS_RELAY=False,
            ASYNC_HOOKS_LEASE=3,
            **config,
        )
        self.hooks = AsyncHooks(self.app)
        self.task: type[AsyncTask] = make_task(self.hooks, action)
        self.clock = Clock()

    def launch(self, count: int = 1, **wishes: Any) -> list[str]:
        with self.app.app_context():
            return [self.task.dispatch({"n": n}, **wishes) for n in range(count)]

    def delivery(self, delivery_id: str) -> Delivery:
        with self.app.app_context():
            found = self.hooks.outbox.get(delivery_id)
        assert found is not None
        return found

    def why(self, delivery_id: str) -> str:
        with self.app.app_context():
            return self.hooks.outbox.why(delivery_id)

    def process(self) -> Process:
        return Process(self)


class Process:
    """A process that relays: a ledger and claims of its own."""

    def __init__(self, shop: Shop) -> None:
        self.taken: list[Envelope] = []
        database = Database(
            lambda: engine_for(f"sqlite:///{shop.path}", shop.path.parent, synchronous="NORMAL"),
            patience=0.05,
            is_own=True,
        )
        self.ledger = Ledger(
            f"shop {shop.path}", database, now=lambda: time.time() + shop.clock.at - 1000
        )
        config = state_of(shop.app).config
        self.claims = Claims(
            shop.app, config, self.ledger, take=self.taken.append, clock=shop.clock
        )

    def turn(self) -> list[Envelope]:
        """Take one turn of the loop, and look round; return what it claimed."""
        before, notes = len(self.taken), self.claims._notes.get()
        notes.look_at = float("-inf")
        self.claims._tick(notes)
        return self.taken[before:]

    def heartbeat(self, shop: Shop) -> None:
        """Let a beat's time pass, and take a turn."""
        shop.clock.at += 1.01
        self.turn()


@pytest.fixture
def shop(tmp_path: Path, action: str) -> Shop:
    return Shop(tmp_path, action)


def test_what_is_due_is_claimed_as_far_as_there_is_room(shop: Shop) -> None:
    shop.launch(20)
    assert len(shop.process().turn()) == 8  # Four for each of two senders.


def test_what_is_claimed_is_not_claimed_again(shop: Shop) -> None:
    [launched] = shop.launch()
    assert [envelope.id for envelope in shop.process().turn()] == [launched]
    assert shop.process().turn() == []


def test_a_completed_attempt_is_written_once_by_whoever_knows(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.process()
    [envelope] = process.turn()
    assert process.ledger.begin(envelope)
    process.claims.settle(envelope, DONE)
    assert shop.delivery(launched).state is DeliveryState.COMPLETED
    assert process.ledger.me.held == {}


@pytest.mark.parametrize(
    ("ending", "begins", "attempts", "crashes"),
    [
        (Verdict(Outcome.FAILED, "no"), True, 1, 0),
        (Verdict(Outcome.RETRY, "no", after=5), True, 1, 0),
        (Verdict(Outcome.INTERCEPTED, "no"), True, 0, 0),
        (Verdict(Outcome.BUSY, "no"), False, 0, 0),
        (Verdict(Outcome.UNWRITTEN, "no"), True, 0, 0),
        (Verdict(Outcome.EXPIRED, "no"), False, 0, 0),
        (Verdict(Outcome.UNKNOWN, "no"), True, 0, 0),
        (Unreachable("no"), False, 0, 0),
        (TimedOut("no"), False, 0, 0),
        (TimedOut("no"), True, 1, 0),
        (ConnectionBroken("no"), False, 0, 0),
        (ConnectionBroken("no"), True, 1, 1),
        (TransportError("a login page", cause="login-page"), False, 0, 0),
        (TransportError("a login page", cause="login-page"), True, 1, 0),
    ],
    ids=repr,
)
def test_each_ending_uses_up_what_the_rules_say(
    shop: Shop, ending: Any, begins: bool, attempts: int, crashes: int
) -> None:
    [launched] = shop.launch()
    process = shop.process()
    [envelope] = process.turn()
    if begins:
        begin_elsewhere(process, envelope)
    process.claims.settle(envelope, ending)
    delivery = shop.delivery(launched)
    assert delivery.state is DeliveryState.AVAILABLE
    assert (delivery.attempts, delivery.crashes) == (attempts, crashes)


def test_a_failure_waits_for_its_backoff_and_says_so(shop: Shop, facts: Facts) -> None:
    [launched] = shop.launch()
    process = shop.process()
    [envelope] = process.turn()
    process.ledger.begin(envelope)
    process.claims.settle(envelope, Verdict(Outcome.FAILED, "ValueError: no"))
    delivery = shop.delivery(launched)
    wait = (delivery.run_at - delivery.created_at).total_seconds()
    assert 3.9 < wait < 60
    assert delivery.error == "ValueError: no"
    [retrying] = facts.of("retrying")
    assert retrying["run_at"] == delivery.run_at
    assert process.turn() == []
    assert "It waits for its time" in shop.why(launched)


def test_a_retry_may_ask_for_its_own_time(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.process()
    [envelope] = process.turn()
    process.ledger.begin(envelope)
    process.claims.settle(envelope, Verdict(Outcome.RETRY, "later", after=3600.0))
    delivery = shop.delivery(launched)
    assert (delivery.run_at - delivery.created_at).total_seconds() > 3590


def attempt(process: Process, ending: Any) -> None:
    [envelope] = process.turn()
    begin_elsewhere(process, envelope)
    process.claims.settle(envelope, ending)


def begin_elsewhere(process: Process, envelope: Envelope) -> None:
    """Begin the attempt in a process that has no relay, and that nobody sees living."""
    assert process.ledger.begin(envelope)
    process.ledger.me.running.clear()


def test_attempts_run_out(tmp_path: Path, action: str, facts: Facts) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_MAX_ATTEMPTS=2)
    [launched] = shop.launch()
    process = shop.process()
    for _ in range(2):
        attempt(process, Verdict(Outcome.RETRY, "no", after=0.0))
    assert shop.delivery(launched).state is DeliveryState.DISCARDED
    assert [fact["error"] for fact in facts.of("discarded")] == ["no"]


def test_crashes_run_out_and_do_not_count_as_failures(
    tmp_path: Path, action: str, facts: Facts
) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_MAX_CRASHES=2, ASYNC_HOOKS_MAX_ATTEMPTS=2)
    [launched] = shop.launch()
    process = shop.process()
    attempt(process, ConnectionBroken("it died"))
    attempt(process, Verdict(Outcome.RETRY, "no", after=0.0))
    assert shop.delivery(launched).state is DeliveryState.AVAILABLE
    attempt(process, ConnectionBroken("it died"))
    assert shop.delivery(launched).state is DeliveryState.DISCARDED
    assert facts.of("discarded")[0]["error"] == "it died"


def test_what_is_unknown_here_is_left_to_others(shop: Shop, action: str) -> None:
    [launched] = shop.launch()
    stranger = plain_app(ASYNC_HOOKS_OUTBOX=f"sqlite:///{shop.path}", ASYNC_HOOKS_RELAY=False)
    hooks = AsyncHooks(stranger)
    with stranger.app_context():
        assert "parked" in hooks.outbox.why(launched)
        [waiting] = hooks.outbox.backlog()
        assert (waiting.count, waiting.is_known) == (1, False)
    other = Process(shop)
    other.claims = Claims(
        stranger, state_of(stranger).config, other.ledger, take=other.taken.append
    )
    assert other.turn() == []
    assert [envelope.id for envelope in shop.process().turn()] == [launched]


def test_an_alias_knows_its_former_self(shop: Shop, action: str) -> None:
    [launched] = shop.launch()
    renamed = Shop(shop.path.parent, action + "_2")

    class Renamed(AsyncTask):
        name = "renamed"
        aliases = (shop.task.name,)

    Renamed.action = action + "_3"
    hooks = AsyncHooks()
    hooks.register(Renamed)
    app = plain_app(ASYNC_HOOKS_OUTBOX=f"sqlite:///{shop.path}", ASYNC_HOOKS_RELAY=False)
    hooks.init_app(app)
    process = Process(renamed)
    process.claims = Claims(app, state_of(app).config, process.ledger, take=process.taken.append)
    assert [envelope.id for envelope in process.turn()] == [launched]


def test_nothing_is_claimed_while_nothing_arrives(shop: Shop) -> None:
    shop.launch(5)
    process = shop.process()
    for envelope in process.turn():
        process.claims.settle(envelope, Unreachable("nobody listens"))
    assert process.turn() == []
    shop.clock.at += 0.7
    assert len(process.turn()) == 1  # One goes ahead.
    process.claims.settle(process.taken[-1], DONE)
    assert len(process.turn()) == 4


def test_a_dead_process_of_this_machine_is_missed_at_once(shop: Shop, facts: Facts) -> None:
    began, waited = shop.launch(2)
    dead = shop.process()
    first, _ = sorted(dead.turn(), key=lambda envelope: envelope.id != began)
    assert dead.ledger.begin(first)
    survivor = shop.process()
    assert survivor.turn() == []
    kill(dead)
    survivor.heartbeat(shop)
    assert shop.delivery(began).crashes == 1
    assert (shop.delivery(waited).attempts, shop.delivery(waited).crashes) == (0, 0)
    assert "died" in str(facts.of("failed")[0]["exception"])
    assert {envelope.id for envelope in survivor.taken} == {began, waited}


def kill(process: Process) -> None:
    """Release the lock, and leave the file, as the kernel does."""
    liveness = process.ledger.me.liveness
    assert liveness._file is not None
    os.close(liveness._file)
    liveness._file = None


def test_a_silent_process_of_another_machine_is_missed_after_three_beats(shop: Shop) -> None:
    [launched] = shop.launch()
    silent, survivor = shop.process(), shop.process()
    silent.ledger.me.liveness.host_id = "elsewhere"
    silent.turn()
    survivor.turn()
    for _ in range(2):
        survivor.heartbeat(shop)
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    survivor.heartbeat(shop)
    assert survivor.taken


def test_a_holder_without_a_row_of_its_own_is_missed_too(shop: Shop) -> None:
    [launched] = shop.launch()
    buried, survivor = shop.process(), shop.process()
    buried.turn()
    buried.ledger.deregister(buried.ledger.me.relay_id)
    survivor.turn()
    for _ in range(2):
        survivor.heartbeat(shop)
    assert survivor.taken == []
    survivor.heartbeat(shop)
    assert [envelope.id for envelope in survivor.taken] == [launched]


def test_who_beats_is_not_missed_however_slow_the_observer(shop: Shop) -> None:
    shop.launch()
    alive, observer = shop.process(), shop.process()
    alive.ledger.me.liveness.host_id = "elsewhere"
    alive.turn()
    for _ in range(5):
        observer.heartbeat(shop)
        alive.turn()
    assert observer.taken == []


def test_nobody_is_missed_while_the_database_is_locked(shop: Shop) -> None:
    shop.launch()
    alive, observer = shop.process(), shop.process()
    alive.ledger.me.liveness.host_id = "elsewhere"
    alive.turn()
    observer.turn()
    with closing(sqlite3.connect(shop.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for _ in range(5):
            shop.clock.at += 1.01
            with pytest.raises(Exception, match="locked"):
                observer.turn()
        writer.execute("ROLLBACK")
    observer.turn()
    observer.heartbeat(shop)
    assert observer.taken == []


def test_a_process_that_was_frozen_changes_nothing_any_more(shop: Shop) -> None:
    [launched] = shop.launch()
    frozen, survivor = shop.process(), shop.process()
    [envelope] = frozen.turn()
    frozen.ledger.begin(envelope)
    kill(frozen)
    survivor.turn()
    [again] = survivor.taken
    before = shop.delivery(launched)
    for ending in (DONE, Verdict(Outcome.FAILED, "late"), ConnectionBroken("late")):
        frozen.claims.settle(envelope, ending)
    assert not frozen.ledger.complete(envelope, None)
    assert not frozen.ledger.begin(envelope)
    assert shop.delivery(launched) == before
    assert survivor.ledger.begin(again)


def test_what_nobody_here_remembers_goes_back(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.process()
    process.turn()
    process.ledger.me.held.clear()  # As after a commit of which nobody knew.
    process.heartbeat(shop)
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    process.heartbeat(shop)
    assert shop.delivery(launched).attempts == 0
    assert len(process.taken) == 2


def test_a_run_whose_sender_is_gone_is_settled_by_its_own_process(shop: Shop) -> None:
    [launched] = shop.launch()
    sender, executor = shop.process(), shop.process()
    executor.turn()
    with shop.app.app_context():
        assert shop.hooks.outbox.counts()["executing"] == 1
    [envelope] = executor.taken
    executor.claims.release(envelope)  # Another process had claimed and posted it …
    assert executor.ledger.begin(envelope)
    executor.ledger.end(envelope, Verdict(Outcome.DISCARDED, "never again"))  # … and died.
    executor.heartbeat(shop)
    executor.heartbeat(shop)
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.error) == (DeliveryState.DISCARDED, "never again")
    assert sender.taken == []


def test_a_run_outlives_its_sender_even_before_the_first_beat_of_its_own_process(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    [launched] = shop.launch()
    sender, executor, survivor = shop.process(), shop.process(), shop.process()
    [envelope] = sender.turn()
    monkeypatch.setattr(executor.claims, "_run", lambda notes: None)  # Its thread is still to run.
    executor.claims.start()
    assert executor.ledger.begin(envelope)
    kill(sender)
    survivor.turn()
    assert executor.ledger.complete(envelope, None)
    assert (shop.delivery(launched).attempts, shop.delivery(launched).crashes) == (1, 0)


def test_a_process_takes_nothing_over_before_it_has_looked_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = shop.process()
    monkeypatch.setattr(process.claims, "_run", lambda notes: None)
    process.claims.start()
    new = Envelope(id="new", task=shop.task.name, body="null")
    assert process.claims.reserve(new, "default") is None
    process.turn()
    assert process.claims.reserve(new, "default") is not None


def test_what_is_not_yet_in_the_table_is_not_given_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = shop.process()
    process.turn()
    process.ledger.me.is_beating.set()
    new = Envelope(id="new", task=shop.task.name, body='{"n":1}')
    leased = process.claims.reserve(new, "default")
    assert leased is not None
    real = time.monotonic
    later = SimpleNamespace(monotonic=lambda: real() + 10)
    monkeypatch.setattr(claims, "time", later)  # The database is slow to take it.
    process.turn()
    process.ledger.add([Addition(leased, Terms())], lease=leased.lease)
    process.claims.take_over(leased)
    assert process.taken == [leased]
    process.turn()  # Since it was added, it has waited for long: now it goes back.
    assert shop.delivery("new").state is DeliveryState.EXECUTING
    assert [envelope.id for envelope in process.taken] == ["new", "new"]


def test_a_relay_whose_senders_are_stuck_lets_others_have_the_rest(shop: Shop) -> None:
    shop.launch(4)
    process, other = shop.process(), shop.process()
    for envelope in process.turn()[:2]:
        assert process.claims.set_out(envelope)
    wait_until(process.claims._is_stuck)
    process.turn()
    assert len(other.turn()) == 2
    assert not process.claims.set_out(process.taken[2])


def test_a_run_that_takes_too_long_here_is_failed_and_keeps_running(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_TIMEOUT=10)
    [launched] = shop.launch()
    process = shop.process()
    [envelope] = process.turn()
    process.ledger.begin(envelope)
    me = process.ledger.me
    run = me.running[me.key(envelope)]
    me.running[me.key(envelope)] = run._replace(since=run.since - 13)
    process.turn()
    assert shop.delivery(launched).error == "It ran for more than 12 seconds."
    assert me.runs(envelope)


def test_a_cut_connection_does_not_end_a_run_whose_process_lives(shop: Shop) -> None:
    [launched] = shop.launch()
    sender, executor = shop.process(), shop.process()
    executor.turn()
    executor.claims.give_back(executor.taken)
    [envelope] = sender.turn()
    assert executor.ledger.begin(envelope)
    sender.claims.settle(envelope, ConnectionBroken("a proxy went away"))
    sender.turn()
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    assert executor.ledger.complete(envelope, None)
    sender.turn()
    assert shop.delivery(launched).crashes == 0


def test_a_cut_connection_whose_process_died_is_a_crash_a_moment_later(shop: Shop) -> None:
    [launched] = shop.launch()
    sender, executor = shop.process(), shop.process()
    executor.turn()
    executor.claims.give_back(executor.taken)
    [envelope] = sender.turn()
    assert executor.ledger.begin(envelope)
    sender.claims.settle(envelope, ConnectionBroken("it went away"))
    kill(executor)
    sender.turn()
    assert shop.delivery(launched).crashes == 1


def test_cut_connections_bury_nobody(shop: Shop) -> None:
    launched = shop.launch(3)
    sender, executor = shop.process(), shop.process()
    executor.turn()
    executor.claims.give_back(executor.taken)
    for envelope in sender.turn():
        assert executor.ledger.begin(envelope)
        sender.claims.settle(envelope, ConnectionBroken("a proxy went away"))
        sender.turn()
    assert [shop.delivery(each).crashes for each in launched] == [0, 0, 0]


def test_a_delivery_that_never_begins_keeps_no_other_waiting(shop: Shop) -> None:
    launched = shop.launch(3)
    process = shop.process()
    began: set[str] = set()
    for _ in range(60):
        shop.clock.at += 61
        for envelope in process.turn():
            if envelope.id == launched[0]:
                process.claims.settle(envelope, Verdict(Outcome.INTERCEPTED, "403"))
            else:
                began.add(envelope.id)
                begin_elsewhere(process, envelope)
                process.claims.settle(envelope, DONE)
        if len(began) == 2:
            return
    raise AssertionError(began)


def test_a_repeated_post_leaves_the_run_alone(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.process()
    [envelope] = process.turn()
    assert process.ledger.begin(envelope)
    assert not process.ledger.begin(envelope)
    process.claims.release(envelope)
    for _ in range(3):
        process.heartbeat(shop)
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    assert process.ledger.complete(envelope, None)


def test_the_end_of_a_zombie_leaves_the_next_attempt_alone(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.process()
    [zombie] = process.turn()
    assert process.ledger.begin(zombie)
    process.claims.settle(zombie, TimedOut("no"))
    with shop.app.app_context():
        assert shop.hooks.outbox.retry(launched)
    [again] = process.turn()
    assert process.ledger.begin(again)
    process.ledger.end(zombie, Verdict(Outcome.FAILED, "late"))
    assert process.ledger.me.runs(again)
    process.claims.release(zombie)
    assert process.ledger.me.held


def test_an_answer_given_before_an_attempt_says_nothing_of_one_that_runs(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.process()
    [envelope] = process.turn()
    assert process.ledger.begin(envelope)
    process.claims.settle(envelope, Verdict(Outcome.BUSY, "a copy of it came too late"))
    assert shop.delivery(launched).state is DeliveryState.EXECUTING


def test_a_spoilt_row_is_discarded_and_kept(shop: Shop) -> None:
    spoilt, sound = shop.launch(2)
    with closing(sqlite3.connect(shop.path)) as connection:
        connection.execute(
            "UPDATE async_hooks_deliveries SET context = '[' WHERE id = ?", (spoilt,)
        )
        connection.commit()
    assert [envelope.id for envelope in shop.process().turn()] == [sound]
    delivery = shop.delivery(spoilt)
    assert delivery.state is DeliveryState.DISCARDED
    assert "can't be read" in str(delivery.error)


def test_a_bug_of_ours_pauses_the_loop_and_shows(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [launched] = shop.launch()
    process = shop.process()
    calls = 0
    claim = process.ledger.claim

    def broken(*args: Any) -> tuple[list[Envelope], float | None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug")
        return claim(*args)

    monkeypatch.setattr(process.ledger, "claim", broken)
    with caplog.at_level(logging.ERROR):
        process.claims.start()
        wait_until(lambda: bool(process.taken))
    process.claims.stop()
    process.claims.end()
    assert "The relay failed, and goes on" in caplog.text
    assert [envelope.id for envelope in process.taken] == [launched]


def test_the_loop_sleeps_no_longer_than_until_the_next_is_due(shop: Shop) -> None:
    process = shop.process()
    process.turn()
    assert process.claims._notes.get().next_due == 1.0
    shop.launch(delay=0.5)
    process.turn()
    assert 0 < process.claims._notes.get().next_due <= 0.5


def test_old_deliveries_are_purged_by_the_loop(tmp_path: Path, action: str) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_KEEP=0.001)
    shop.launch()
    process = shop.process()
    attempt(process, DONE)
    shop.clock.at += 61
    wait_until(lambda: process.turn() == [] and not any(counts(shop).values()))


def counts(shop: Shop) -> dict[str, int]:
    with shop.app.app_context():
        return shop.hooks.outbox.counts()
