"""The relay's loop over a real SQLite outbox, turn by turn: no thread of its own, no real time."""

from __future__ import annotations

import itertools
import json
import logging
import os
import queue
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, Delivery, DeliveryState
from async_hooks.delivery import Claim, Ending
from async_hooks.envelope import Envelope, new_id
from async_hooks.errors import (
    ConnectionBroken,
    OutboxUnavailable,
    TimedOut,
    TransportError,
    Unreachable,
)
from async_hooks.outbox.admin import Outbox
from async_hooks.outbox.keys.promotion import Promotion
from async_hooks.outbox.open import Opened
from async_hooks.outbox.processes import Processes
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import engine_for
from async_hooks.outbox.store import Store
from async_hooks.receivers import kinds_of
from async_hooks.relay.claims import Claims
from async_hooks.relay.process import Process
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

    def launch(self, count: int = 1, **options: Any) -> list[str]:
        with self.app.app_context():
            return [self.task.dispatch({"n": n}, **options) for n in range(count)]

    def delivery(self, delivery_id: str) -> Delivery:
        with self.app.app_context():
            found = self.hooks.outbox.get(delivery_id)
        assert found is not None
        return found

    def why(self, delivery_id: str) -> str:
        with self.app.app_context():
            return self.hooks.outbox.why(delivery_id)

    def peer(self) -> Peer:
        return Peer(self)


class Peer:
    """A process that relays: claims of its own, on connections of its own."""

    def __init__(self, shop: Shop, app: Flask | None = None) -> None:
        self.taken: list[Envelope] = []
        app = app or shop.app
        database = Database(
            lambda: engine_for(f"sqlite:///{shop.path}", shop.path.parent, synchronous="NORMAL"),
            patience=0.05,
            is_own=True,
        )
        self.store = Store(database, ["tests.app"], now=lambda: time.time() + shop.clock.at - 1000)
        self.processes = Processes(database, ["tests.app"], self.store.now)
        self.process = Process(f"shop {shop.path}", shop.clock.monotonic)
        outbox = Outbox(app, self.store, self.processes)
        promotion = Promotion(database, ["tests.app"], self.store.now, lambda name: None)
        opened = Opened(self.store, self.processes, promotion, outbox, None, lambda: "shop")
        self.claims = Claims(app, state_of(app).config, opened, self.process)

    def turn(self) -> list[Envelope]:
        """Take one turn of the loop, and maintain; return what it claimed."""
        claims, before = self.claims, len(self.taken)
        claims._maintenance._maintain_at = float("-inf")
        claims._tick()
        while not claims._ready.empty():
            envelope = claims._ready.get()
            assert envelope is not None
            self.taken.append(envelope)
        return self.taken[before:]

    def heartbeat(self, shop: Shop) -> None:
        """Let a heartbeat's time pass, and take a turn."""
        shop.clock.at += 1.01
        self.turn()

    def begin(self, envelope: Envelope) -> bool:
        """Begin the attempt here, as the executor does."""
        process = self.process
        if not process.runs.start(envelope, 30):
            return False
        registered = process.id if process.is_registered.is_set() else None
        begun = self.store.begin(envelope, registered)
        if not begun:
            process.runs.forget(envelope)
        return begun

    def complete(self, envelope: Envelope) -> bool:
        return self.store.record(envelope, Ending(DeliveryState.COMPLETED))


@pytest.fixture
def shop(tmp_path: Path, action: str) -> Shop:
    return Shop(tmp_path, action)


def test_what_is_due_is_claimed_as_far_as_there_is_room(shop: Shop) -> None:
    shop.launch(20)
    assert len(shop.peer().turn()) == 8  # Four for each of two senders.


def test_what_is_claimed_is_not_claimed_again(shop: Shop) -> None:
    [launched] = shop.launch()
    assert [envelope.id for envelope in shop.peer().turn()] == [launched]
    assert shop.peer().turn() == []


def test_a_completed_attempt_is_written_once_by_whoever_knows(shop: Shop) -> None:
    launched, process, envelope = begun_here(shop)
    process.claims.settle(envelope, DONE)
    assert shop.delivery(launched).state is DeliveryState.COMPLETED
    assert process.process.claimed == {}


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
        (Verdict(Outcome.INTERRUPTED, "no"), True, 0, 0),
        (Unreachable("no"), False, 0, 0),
        (TimedOut("no"), False, 0, 0),
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
    process = shop.peer()
    [envelope] = process.turn()
    if begins:
        begin_elsewhere(process, envelope)
    process.claims.settle(envelope, ending)
    delivery = shop.delivery(launched)
    assert delivery.state is DeliveryState.AVAILABLE
    assert (delivery.attempts, delivery.crashes) == (attempts, crashes)


def test_a_failure_waits_for_its_backoff_and_says_so(shop: Shop, facts: Facts) -> None:
    [launched] = shop.launch()
    process = shop.peer()
    [envelope] = process.turn()
    process.begin(envelope)
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
    process = shop.peer()
    [envelope] = process.turn()
    process.begin(envelope)
    process.claims.settle(envelope, Verdict(Outcome.RETRY, "later", after=3600.0))
    delivery = shop.delivery(launched)
    assert (delivery.run_at - delivery.created_at).total_seconds() > 3590


def attempt(process: Peer, ending: Any) -> None:
    [envelope] = process.turn()
    begin_elsewhere(process, envelope)
    process.claims.settle(envelope, ending)


def begun_here(shop: Shop) -> tuple[str, Peer, Envelope]:
    """Return a delivery's id, the process that sent and began it, and its envelope."""
    [launched] = shop.launch()
    process = shop.peer()
    [envelope] = process.turn()
    assert process.begin(envelope)
    return launched, process, envelope


def sent_and_begun(shop: Shop) -> tuple[str, Peer, Peer, Envelope]:
    """Return a delivery's id, who sent it, who began it, and its envelope."""
    [launched] = shop.launch()
    sender, executor = shop.peer(), shop.peer()
    executor.turn()
    executor.claims._settler.release(executor.taken)
    [envelope] = sender.turn()
    assert executor.begin(envelope)
    return launched, sender, executor, envelope


def begin_elsewhere(process: Peer, envelope: Envelope) -> None:
    """Begin the attempt in a process that has no relay, and that nobody sees living."""
    assert process.begin(envelope)
    process.process.runs._running.clear()


def test_attempts_run_out(tmp_path: Path, action: str, facts: Facts) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_MAX_ATTEMPTS=2)
    [launched] = shop.launch()
    process = shop.peer()
    for _ in range(2):
        attempt(process, Verdict(Outcome.RETRY, "no", after=0.0))
    assert shop.delivery(launched).state is DeliveryState.DISCARDED
    assert [fact["error"] for fact in facts.of("discarded")] == ["no"]


def test_crashes_run_out_and_do_not_count_as_failures(
    tmp_path: Path, action: str, facts: Facts
) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_MAX_CRASHES=2, ASYNC_HOOKS_MAX_ATTEMPTS=2)
    [launched] = shop.launch()
    process = shop.peer()
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
    other = Peer(shop, stranger)
    assert other.turn() == []
    assert [envelope.id for envelope in shop.peer().turn()] == [launched]


def test_each_kind_that_is_due_and_unknown_is_warned_of_once(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "is unknown to this code" in line]

    def add(task: str, receiver: str | None = None, after: float = 0) -> None:
        at = time.time() + after
        envelope = Envelope(id=new_id(), task=task, body="{}", receiver=receiver, run_at=at)
        peer.store.add([envelope])

    peer = shop.peer()
    add("gone")
    add("later", after=60)
    peer.turn()
    [line] = unknown()
    assert line.startswith("Task 'gone' is unknown to this code, so its deliveries wait.")
    assert "'ASYNC_HOOKS_IMPORTS'" in line
    add("gone")
    add(shop.task.name, "crm")
    for _ in range(6):
        peer.heartbeat(shop)
    [_, line] = unknown()
    assert line.startswith(f"Receiver 'crm' of task {shop.task.name!r} is unknown to this code")
    shop.clock.at += 60
    peer.turn()
    assert "Task 'later'" in unknown()[2]


def test_what_is_unknown_is_seen_behind_any_backlog_once_that_is_done(shop: Shop) -> None:
    shop.launch(300)
    peer = shop.peer()
    peer.store.add([Envelope(id=new_id(), task="gone", body="{}")])
    assert peer.store.due_kinds() == {(shop.task.name, "")}
    for envelope in peer.store.claim(Claim("p", "l"), kinds_of(state_of(shop.app)), 300)[0]:
        assert peer.begin(envelope)
        assert peer.complete(envelope)
    assert peer.store.due_kinds() == {("gone", "")}


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
    process = Peer(renamed, app)
    assert [envelope.id for envelope in process.turn()] == [launched]


def test_nothing_is_claimed_while_nothing_arrives(shop: Shop) -> None:
    shop.launch(5)
    process = shop.peer()
    for envelope in process.turn():
        process.claims.settle(envelope, Unreachable("nobody listens"))
    assert process.turn() == []
    shop.clock.at += 0.7
    assert len(process.turn()) == 1  # One goes ahead.
    process.claims.settle(process.taken[-1], DONE)
    assert len(process.turn()) == 4


def test_a_dead_process_of_this_machine_is_missed_at_once(shop: Shop, facts: Facts) -> None:
    began, waited = shop.launch(2)
    dead = shop.peer()
    first, _ = sorted(dead.turn(), key=lambda envelope: envelope.id != began)
    assert dead.begin(first)
    survivor = shop.peer()
    assert survivor.turn() == []
    kill(dead)
    survivor.heartbeat(shop)
    assert shop.delivery(began).crashes == 1
    assert (shop.delivery(waited).attempts, shop.delivery(waited).crashes) == (0, 0)
    assert "died" in str(facts.of("failed")[0]["exception"])
    assert {envelope.id for envelope in survivor.taken} == {began, waited}


def kill(process: Peer) -> None:
    """Release the lock, and leave the file, as the kernel does."""
    liveness = process.process.liveness
    assert liveness._file is not None
    os.close(liveness._file)
    liveness._file = None


def test_a_silent_process_of_another_machine_is_missed_after_three_beats(shop: Shop) -> None:
    [launched] = shop.launch()
    silent, survivor = shop.peer(), shop.peer()
    silent.process.liveness.host_id = "elsewhere"
    silent.turn()
    survivor.turn()
    for _ in range(2):
        survivor.heartbeat(shop)
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    survivor.heartbeat(shop)
    assert survivor.taken


def test_a_holder_without_a_row_of_its_own_is_missed_too(shop: Shop) -> None:
    [launched] = shop.launch()
    buried, survivor = shop.peer(), shop.peer()
    buried.turn()
    buried.processes.deregister(buried.process.id)
    survivor.turn()
    for _ in range(2):
        survivor.heartbeat(shop)
    assert survivor.taken == []
    survivor.heartbeat(shop)
    assert [envelope.id for envelope in survivor.taken] == [launched]


def test_who_beats_is_not_missed_however_slow_the_observer(shop: Shop) -> None:
    shop.launch()
    alive, observer = shop.peer(), shop.peer()
    alive.process.liveness.host_id = "elsewhere"
    alive.turn()
    for _ in range(5):
        observer.heartbeat(shop)
        alive.turn()
    assert observer.taken == []


def test_nobody_is_missed_while_the_database_is_locked(shop: Shop) -> None:
    shop.launch()
    alive, observer = shop.peer(), shop.peer()
    alive.process.liveness.host_id = "elsewhere"
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
    frozen, survivor = shop.peer(), shop.peer()
    [envelope] = frozen.turn()
    frozen.begin(envelope)
    kill(frozen)
    survivor.turn()
    [again] = survivor.taken
    before = shop.delivery(launched)
    for ending in (DONE, Verdict(Outcome.FAILED, "late"), ConnectionBroken("late")):
        frozen.claims.settle(envelope, ending)
    assert not frozen.complete(envelope)
    assert not frozen.begin(envelope)
    assert shop.delivery(launched) == before
    assert survivor.begin(again)


def test_what_nobody_here_remembers_goes_back(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.peer()
    process.turn()
    process.process.claimed.clear()  # As after a commit of which nobody knew.
    process.heartbeat(shop)
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    process.heartbeat(shop)
    assert shop.delivery(launched).attempts == 0
    assert len(process.taken) == 2


def test_a_run_whose_sender_is_gone_is_settled_by_its_own_process(shop: Shop) -> None:
    [launched] = shop.launch()
    sender, executor = shop.peer(), shop.peer()
    executor.turn()
    with shop.app.app_context():
        assert shop.hooks.outbox.counts()["executing"] == 1
    [envelope] = executor.taken
    executor.process.drop(envelope)  # Another process had claimed and posted it …
    assert executor.begin(envelope)
    executor.process.finish(envelope, Verdict(Outcome.DISCARDED, "never again"))  # … and died.
    executor.heartbeat(shop)
    executor.heartbeat(shop)
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.error) == (DeliveryState.DISCARDED, "never again")
    assert sender.taken == []


def test_a_run_outlives_its_sender_even_before_the_first_beat_of_its_own_process(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    [launched] = shop.launch()
    sender, executor, survivor = shop.peer(), shop.peer(), shop.peer()
    [envelope] = sender.turn()
    monkeypatch.setattr(executor.claims, "_run", lambda: None)  # Its thread is still to run.
    executor.claims.start()
    assert executor.begin(envelope)
    kill(sender)
    survivor.turn()
    assert executor.complete(envelope)
    assert (shop.delivery(launched).attempts, shop.delivery(launched).crashes) == (1, 0)


def test_a_relay_whose_senders_are_stuck_lets_others_have_the_rest(shop: Shop) -> None:
    shop.launch(4)
    process, other = shop.peer(), shop.peer()
    for envelope in process.turn()[:2]:
        assert process.process.send(envelope)
    shop.clock.at += 0.11
    process.turn()
    assert len(other.turn()) == 2
    assert not process.process.send(process.taken[2])


@pytest.mark.parametrize("runs_here", [True, False])
def test_an_overdue_run_is_left_to_the_process_that_runs_it(shop: Shop, runs_here: bool) -> None:
    [launched] = shop.launch()
    sender, other = shop.peer(), shop.peer()
    other.turn()
    other.claims._settler.release(other.taken)
    [envelope] = sender.turn()
    executor = sender if runs_here else other
    assert executor.begin(envelope)
    sender.claims.settle(envelope, TimedOut("no"))
    for _ in range(100):
        sender.heartbeat(shop)
        other.heartbeat(shop)
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.attempts) == (DeliveryState.EXECUTING, 1)
    executor.process.finish(envelope, Verdict(Outcome.DISCARDED, "in the end"))
    for _ in range(3):
        executor.heartbeat(shop)
    assert shop.delivery(launched).error == "in the end"


def test_an_overdue_run_whose_process_dies_is_a_crash(shop: Shop) -> None:
    launched, sender, executor, envelope = sent_and_begun(shop)
    sender.claims.settle(envelope, TimedOut("no"))
    kill(executor)
    sender.turn()
    assert [each.attempt for each in sender.taken] == [1, 2]
    assert shop.delivery(launched).crashes == 1


@pytest.mark.parametrize("begins", [True, False])
def test_a_delivery_that_is_refused_again_and_again_is_discarded_in_the_end(
    shop: Shop, begins: bool
) -> None:
    [launched] = shop.launch()
    began, peers, number = shop.clock.at, itertools.cycle([shop.peer(), shop.peer()]), 0
    while not shop.delivery(launched).is_finished:
        process = next(peers)  # No process has seen all refusals.
        for envelope in process.turn():
            number += 1
            if begins:
                begin_elsewhere(process, envelope)
            process.claims.settle(envelope, Verdict(Outcome.INTERCEPTED, "The app answered 403."))
        shop.clock.at += 5
        assert process.process.problem is None
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DISCARDED, 5)
    assert (delivery.error, number) == ("The app answered 403.", 5 * 21)
    assert shop.clock.at - began > 13 * 60


def test_a_cut_connection_does_not_end_a_run_whose_process_lives(shop: Shop) -> None:
    launched, sender, executor, envelope = sent_and_begun(shop)
    sender.claims.settle(envelope, ConnectionBroken("a proxy went away"))
    sender.turn()
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    assert executor.complete(envelope)
    sender.turn()
    assert shop.delivery(launched).crashes == 0


def test_a_cut_connection_whose_process_died_is_a_crash_a_moment_later(shop: Shop) -> None:
    launched, sender, executor, envelope = sent_and_begun(shop)
    sender.claims.settle(envelope, ConnectionBroken("it went away"))
    kill(executor)
    sender.turn()
    assert shop.delivery(launched).crashes == 1


def test_cut_connections_bury_nobody(shop: Shop) -> None:
    launched = shop.launch(3)
    sender, executor = shop.peer(), shop.peer()
    executor.turn()
    executor.claims._settler.release(executor.taken)
    for envelope in sender.turn():
        assert executor.begin(envelope)
        sender.claims.settle(envelope, ConnectionBroken("a proxy went away"))
        sender.turn()
    assert [shop.delivery(each).crashes for each in launched] == [0, 0, 0]


def test_a_delivery_that_never_begins_keeps_no_other_waiting(shop: Shop) -> None:
    launched = shop.launch(3)
    process = shop.peer()
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
    launched, process, envelope = begun_here(shop)
    assert not process.begin(envelope)
    process.process.drop(envelope)
    for _ in range(3):
        process.heartbeat(shop)
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    assert process.complete(envelope)


def test_the_end_of_a_zombie_leaves_the_next_attempt_alone(shop: Shop) -> None:
    [launched] = shop.launch()
    process = shop.peer()
    [zombie] = process.turn()
    assert process.begin(zombie)
    process.process.drop(zombie)
    with shop.app.app_context():
        assert shop.hooks.outbox.cancel(launched)
        assert shop.hooks.outbox.retry(launched)
    [again] = process.turn()
    assert process.begin(again)
    process.process.finish(zombie, Verdict(Outcome.FAILED, "late"))
    assert again in process.process.runs
    process.process.drop(zombie)
    assert process.process.claimed


def test_an_answer_given_before_an_attempt_says_nothing_of_one_that_runs(shop: Shop) -> None:
    launched, process, envelope = begun_here(shop)
    process.claims.settle(envelope, Verdict(Outcome.BUSY, "a copy of it came too late"))
    assert shop.delivery(launched).state is DeliveryState.EXECUTING


@pytest.mark.parametrize(
    "spoils",
    [
        {"context": "["},
        {"context": json.dumps({"v": 2})},
        {"body": "{"},
        {"body": "[" * 100_000},
        {"result": "{"},
        {"result": "[" * 100_000},
        {"run_at": 1e300},
        {"created_at": -1e300},
        {"state": "invented"},
    ],
    ids=str,
)
def test_a_spoilt_row_hides_no_other(shop: Shop, spoils: dict[str, Any]) -> None:
    spoilt, sound = shop.launch(2)
    [(column, value)] = spoils.items()
    with closing(sqlite3.connect(shop.path)) as connection:
        change = f"UPDATE async_hooks_deliveries SET {column} = ? WHERE id = ?"
        connection.execute(change, (value, spoilt))
        connection.commit()
    with shop.app.app_context():
        outbox = shop.hooks.outbox
        shown = outbox.get(spoilt)
        assert shown is not None
        assert column.endswith("_at") or "can't read the row" in str(shown.error)
        assert {each.id for each in outbox.find()} == {spoilt, sound}
        assert column.endswith("_at") or "can't read the row" in outbox.why(spoilt)
        assert outbox.group(spoilt) is not None
        outbox.counts()
        outbox.backlog()
        outbox.health()
        assert outbox.cancel(sound)


def test_a_spoilt_row_is_left_to_others_and_shown(shop: Shop) -> None:
    spoilt, sound = shop.launch(2)
    with closing(sqlite3.connect(shop.path)) as connection:
        connection.execute(
            "UPDATE async_hooks_deliveries SET context = '[' WHERE id = ?", (spoilt,)
        )
        connection.commit()
    assert [envelope.id for envelope in shop.peer().turn()] == [sound]
    delivery = shop.delivery(spoilt)
    assert (delivery.state, delivery.data) == (DeliveryState.AVAILABLE, None)
    assert "can't read the row" in str(delivery.error)
    assert "can't read the row" in shop.why(spoilt)


def test_a_bug_of_ours_pauses_the_loop_and_shows(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [launched] = shop.launch()
    process = shop.peer()
    calls = 0
    claim = process.store.claim

    def broken(*args: Any) -> tuple[list[Envelope], float | None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug")
        return claim(*args)

    monkeypatch.setattr(process.store, "claim", broken)
    with caplog.at_level(logging.ERROR):
        process.claims.start()
        taken = process.claims.next()
    process.claims.stop()
    process.claims.end([], TransportError("the process ends"))
    assert "The relay failed; it retries" in caplog.text
    assert taken is not None
    assert taken.id == launched


def test_a_stop_gives_back_what_waits_and_ends_every_sender(shop: Shop) -> None:
    [launched] = shop.launch()
    process, taken = shop.peer(), queue.SimpleQueue[Envelope | None]()
    senders = [threading.Thread(target=lambda: taken.put(process.claims.next())) for _ in "abc"]
    for sender in senders:
        sender.start()
    process.claims.stop()
    assert [taken.get(timeout=20) for _ in senders] == [None] * 3
    process.claims._tick()  # It was about to claim when the stop came.
    assert process.claims.next() is None
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.attempts) == (DeliveryState.AVAILABLE, 0)
    assert process.process.claimed == {}


def test_a_process_that_never_relayed_has_nothing_to_sign_off(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, signed_off = shop.peer(), list[str]()
    monkeypatch.setattr(process.processes, "deregister", signed_off.append)
    process.claims.wake()
    process.claims.end([], TransportError("the process ends"))
    assert "liveness" not in vars(process.process)
    assert signed_off == []


def test_the_loop_sleeps_no_longer_than_until_the_next_is_due(shop: Shop) -> None:
    process = shop.peer()
    process.turn()
    assert process.claims._next_due == 1.0
    shop.launch(delay=0.5)
    process.turn()
    assert 0 < process.claims._next_due <= 0.5


def test_old_deliveries_are_purged_by_the_loop(tmp_path: Path, action: str) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_KEEP=0.001)
    shop.launch()
    process = shop.peer()
    attempt(process, DONE)
    shop.clock.at += 61
    wait_until(lambda: process.turn() == [] and not any(counts(shop).values()))


def counts(shop: Shop) -> dict[str, int]:
    with shop.app.app_context():
        return shop.hooks.outbox.counts()


def test_an_attempt_that_another_replaced_is_forgotten_by_its_own_process(shop: Shop) -> None:
    launched, process, envelope = begun_here(shop)
    with shop.app.app_context():
        assert shop.hooks.outbox.cancel(launched)
    replayed = Verdict(Outcome.REPLAYED, "another has taken its place")
    process.process.finish(envelope, replayed)
    process.claims.settle(envelope, replayed)
    for _ in range(3):
        process.heartbeat(shop)
    assert not process.process.knows(envelope)
    assert process.process.runs.finished == {}
    assert shop.delivery(launched).state is DeliveryState.CANCELLED


def test_a_verdict_counts_although_its_answer_was_lost(shop: Shop) -> None:
    launched, process, envelope = begun_here(shop)
    process.process.finish(envelope, Verdict(Outcome.DISCARDED, "not wanted"))
    for _ in range(3):
        process.heartbeat(shop)
    process.claims.settle(envelope, ConnectionBroken("a proxy went away"))
    process.turn()
    delivery = shop.delivery(launched)
    assert (delivery.state, delivery.crashes) == (DeliveryState.DISCARDED, 0)


def test_a_failing_turn_does_not_make_the_heart_beat_faster(shop: Shop, monkeypatch: Any) -> None:
    process = shop.peer()
    monkeypatch.setattr(process.claims._maintenance, "_check_own", down)
    with pytest.raises(OutboxUnavailable):
        process.turn()
    process.turn()
    [row] = process.processes.all()
    assert row.heartbeat == 1


def down(*_: Any) -> None:
    raise OutboxUnavailable("the database is away")


def test_an_attempt_that_another_replaced_is_settled_once_and_not_for_ever(shop: Shop) -> None:
    launched, process, envelope = begun_here(shop)
    with shop.app.app_context():
        assert shop.hooks.outbox.cancel(launched)
    refused = Verdict(Outcome.UNWRITTEN, "The outbox can't be used.")
    process.process.finish(envelope, refused)
    process.claims.settle(envelope, refused)
    assert not process.process.awaited
    for _ in range(3):
        process.heartbeat(shop)
    assert process.process.runs.finished == {}


def test_a_cancelled_run_that_fails_anywhere_is_nobodys_afterwards(shop: Shop) -> None:
    launched, sender, executor, envelope = sent_and_begun(shop)
    with shop.app.app_context():
        assert shop.hooks.outbox.cancel(launched)
        executor.heartbeat(shop)
        assert [each.cancelled for each in shop.hooks.outbox.relays() if each.cancelled] == [
            [launched]
        ]
        failed = Verdict(Outcome.FAILED, "no")
        executor.process.finish(envelope, failed)
        sender.claims.settle(envelope, failed)
        executor.heartbeat(shop)
        assert not any(each.cancelled for each in shop.hooks.outbox.relays())


def test_what_ends_while_its_process_stops_is_settled(shop: Shop) -> None:
    launched, process, envelope = begun_here(shop)
    process.claims.settle(envelope, TimedOut("no"))
    assert process.claims.start()
    process.claims.stop()
    process.process.finish(envelope, Verdict(Outcome.DISCARDED, "not wanted"))
    process.claims.end([], TransportError("over"))
    assert shop.delivery(launched).state is DeliveryState.DISCARDED


def test_an_attempt_of_which_nobody_knows_is_not_waited_for_for_ever(
    tmp_path: Path, action: str
) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_TIMEOUT=None)
    [launched] = shop.launch()
    process = shop.peer()
    [envelope] = process.turn()
    begin_elsewhere(process, envelope)
    process.claims.settle(envelope, TimedOut("no"))
    process.turn()
    assert shop.delivery(launched).state is DeliveryState.EXECUTING
    shop.clock.at += 3601
    process.turn()
    assert shop.delivery(launched).error == "Its outcome is unknown."


@pytest.mark.parametrize("how", ["checkpoint", "progress"])
def test_an_attempt_that_moves_is_never_taken_for_lost_whoever_runs_it(
    shop: Shop, how: str
) -> None:
    """Its process has no relay, and its sender has hung up: all that is seen is that it moves."""
    [launched] = shop.launch()
    process = shop.peer()
    [envelope] = process.turn()
    begin_elsewhere(process, envelope)
    process.claims.settle(envelope, TimedOut("no"))
    for step in range(5):
        shop.clock.at += 25
        if how == "checkpoint":
            assert process.store.checkpoint(envelope, str(step), None) is False
        else:
            assert process.store.write_progress([(envelope, "{}", process.store.now())])
        process.heartbeat(shop)
        assert shop.delivery(launched).state is DeliveryState.EXECUTING
    shop.clock.at += 2 * 30 + 3
    process.turn()
    assert shop.delivery(launched).error == "Its outcome is unknown."


def test_a_run_that_moved_and_fails_is_settled_by_its_own_process_if_its_sender_has_hung_up(
    shop: Shop,
) -> None:
    launched, sender, executor, envelope = sent_and_begun(shop)
    sender.claims.settle(envelope, TimedOut("no"))
    [running] = executor.process.runs._running.values()
    running.awaited_until = 0.0
    executor.process.runs.move_deadline(envelope, 30)
    assert not running.is_overdue
    executor.process.finish(envelope, Verdict(Outcome.DISCARDED, "not wanted"))
    executor.turn()
    assert shop.delivery(launched).state is DeliveryState.DISCARDED
