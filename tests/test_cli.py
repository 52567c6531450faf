"""The command line of the outbox: what each command says, does and exits with."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask, current_app
from sqlalchemy import update

from async_hooks import AsyncHooks, AsyncTask, ConfigError, async_signal
from async_hooks.cli import cli
from async_hooks.envelope import Envelope, new_id
from async_hooks.host.runtime_dir import runtime_dir
from async_hooks.outbox.processes import BATCH, Processes
from async_hooks.outbox.sql import schema, tables
from async_hooks.signals import queue_paused, queue_resumed, task_cancelled
from async_hooks.state import state_of
from tests.support.apps import make_app, make_task, plain_app
from tests.support.databases import KINDS, fresh_database

OUTBOX_COMMANDS = (
    ["init-db"],
    ["status"],
    ["deliveries"],
    ["why", "x"],
    ["retry", "x"],
    ["cancel", "x"],
    ["reschedule", "x", "2026-01-31T18:00Z"],
    ["delete", "x"],
    ["pause", "q"],
    ["resume", "q"],
    ["purge"],
    ["health"],
)


class Shop:
    """An app with an outbox and a task "mail", and its command line. Nothing relays."""

    def __init__(self, url: str, **config: Any) -> None:
        self.app, self.hooks = make_app(
            ASYNC_HOOKS_TRANSPORT="in_process",
            ASYNC_HOOKS_OUTBOX=url,
            **{"ASYNC_HOOKS_RELAY": False, **config},
        )
        register_mail(self.hooks)
        state = state_of(self.app)
        assert state.store is not None
        self.store = state.store
        self.process = state.process

    def run(self, *arguments: str, answer: str | None = None) -> Result:
        return run(self.app, *arguments, answer=answer)

    def json(self, *arguments: str, code: int = 0) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def add(self, task: str = "mail", receiver: str | None = None, **terms: Any) -> str:
        delivery_id = new_id()
        envelope = Envelope(id=delivery_id, task=task, body='{"to": "a@b.c"}', receiver=receiver)
        self.store.add([envelope._replace(**terms)])
        return delivery_id

    def heartbeat(self, problem: str | None, **shown: Any) -> None:
        """Show that this process relays, as its relay does."""
        process = self.process[os.getpid()]
        Processes(self.store.database, self.store.audiences, self.store.now).heartbeat(
            process.id,
            host=os.uname().nodename,
            pid=process.pid,
            host_id=process.liveness.host_id,
            problem=problem,
            **shown,
        )

    def set(self, *ids: str, **values: Any) -> None:
        change = update(schema.deliveries).where(schema.deliveries.c.id.in_(ids)).values(**values)
        self.store.database.execute(change)

    def discarded(self, error: str = "ValueError: no", **terms: Any) -> str:
        delivery_id = self.add(**terms)
        self.set(delivery_id, state="discarded", attempts=5, error=error, finished_at=1e9)
        return delivery_id

    def state(self, delivery_id: str) -> str:
        with self.app.app_context():
            delivery = self.hooks.outbox.get(delivery_id)
        return str(delivery.state) if delivery is not None else "gone"


def register_mail(hooks: AsyncHooks) -> None:
    class Mail(AsyncTask):
        action = "cli_mail"
        name = "mail"
        aliases = ("post",)

        def run_action(self, data: dict[str, Any]) -> None: ...

    hooks.register(Mail)


def run(app: Flask, *arguments: str, answer: str | None = None) -> Result:
    return app.test_cli_runner().invoke(cli, list(arguments), input=answer)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(f"sqlite:///{tmp_path / 'outbox.db'}")


@pytest.fixture(params=KINDS)
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """The shop on each kind of database, without tables."""
    with fresh_database(request.param, tmp_path) as url:
        shop = Shop(url)
        yield shop
        shop.store.database.engine.dispose()


# -- all of them


@pytest.mark.parametrize("command", OUTBOX_COMMANDS, ids=lambda command: command[0])
def test_without_an_outbox_a_command_says_which_key_is_missing(command: list[str]) -> None:
    app, _ = make_app()
    result = run(app, *command)
    assert result.exit_code == 2
    assert f"'flask async-hooks {command[0]}' of 'tests.app' needs an outbox" in result.stderr
    assert "Set 'ASYNC_HOOKS_OUTBOX'" in result.stderr


@pytest.mark.parametrize("command", OUTBOX_COMMANDS, ids=lambda command: command[0])
def test_a_database_that_is_not_there_is_a_sentence(command: list[str]) -> None:
    shop = Shop("postgresql://postgres:secret@127.0.0.1:1/shop")
    result = shop.run(*command)
    assert result.exit_code == 1
    assert "can't be used: " in result.output
    assert "Traceback" not in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_the_help_of_each_command_names_its_exit_codes(shop: Shop, command: str) -> None:
    assert "Exits with 0" in shop.run(command, "--help").output


def test_the_groups_listing_cuts_no_help(shop: Shop) -> None:
    listing = shop.run("--help").output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listing] == sorted(cli.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listing)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (
            ["deliveries", "--state", "done"],
            "'available', 'executing', 'waiting', 'completed', 'discarded'",
        ),
        (["deliveries", "--limit", "0"], "x>=1"),
        (["deliveries", "--task", "a\nb"], "without control characters"),
        (["reschedule", "x", "tomorrow"], "expected a time with its offset from UTC"),
        (["reschedule", "x", "2027-01-31T18:00"], "e.g. 2027-01-31T18:00+01:00, got: '2027-"),
        (["reschedule", "x", "2099-01-31T18:00Z"], "at most ten years from now"),
        (["retry"], "Name an ID, or --state"),
        (["retry", "x", "--state", "discarded"], "not both"),
        (["retry", "x", "--queue", "q"], "need --state"),
        (["retry", "--state", "executing"], "'available', 'completed', 'discarded', 'cancelled'"),
        (["cancel", "--state", "completed"], "'available', 'executing'"),
        (["purge", "--older-than", "-1"], "expected 0 or more seconds"),
        (["purge", "--older-than", "2w"], "45s, 30m, 12h, 7d, got: '2w'"),
        (["purge", "--older-than", "9999999999d"], "7d, got: '9999999999d'"),
        (["health", "--patience", "0"], "more than 0 seconds"),
        (["health", "--patience", "3651d"], "at most ten years, or e.g. 45s"),
        (["pause", "\udcff"], "without control characters"),
    ],
)
def test_bad_input_is_a_usage_error_that_says_what_is_expected(
    shop: Shop, command: list[str], complaint: str
) -> None:
    result = shop.run(*command)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())


# -- init-db


def test_init_db_makes_the_tables_once(anywhere: Shop) -> None:
    first, second = anywhere.run("init-db"), anywhere.run("init-db")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.output == f"The outbox's tables were created, version {schema.VERSION}.\n"
    assert second.output == f"The outbox's tables are up to date, version {schema.VERSION}.\n"


def test_init_db_deletes_tables_of_another_version_only_if_told_to(anywhere: Shop) -> None:
    anywhere.run("init-db")
    waiting = anywhere.add()
    former = update(schema.version).values(version=1)
    anywhere.store.database.execute(former)
    refused = anywhere.run("init-db")
    assert refused.exit_code == 1
    assert "have version 1" in refused.stderr
    assert "flask async-hooks init-db --recreate" in refused.stderr
    assert anywhere.run("init-db", "--recreate", answer="n").exit_code == 1
    assert anywhere.state(waiting) == "available"
    made = anywhere.run("init-db", "--recreate", "--yes")
    assert made.output == f"The outbox's tables were created, version {schema.VERSION}.\n"
    assert anywhere.state(waiting) == "gone"


# -- a renamed app


def test_what_a_renamed_app_leaves_behind_is_named_and_adopted(shop: Shop, tmp_path: Path) -> None:
    waiting = shop.add()
    renamed = Shop(shop.app.config["ASYNC_HOOKS_OUTBOX"], ASYNC_HOOKS_AUDIENCE="store")
    checked = renamed.run("check")
    assert checked.exit_code == 1
    assert "'tests.app' has unfinished deliveries of this app's tasks (1)" in checked.stderr
    assert "flask async-hooks adopt tests.app" in checked.stderr
    assert renamed.run("health").exit_code == 1
    assert "'tests.app' has unfinished deliveries" in renamed.run("status").output
    assert renamed.state(waiting) == "gone"
    assert renamed.run("adopt", "tests.app", "--yes").output == (
        "Adopted 1 delivery of 'tests.app'.\n"
    )
    assert renamed.state(waiting) == "available"
    assert renamed.run("check").exit_code == 0
    renamed.store.database.engine.dispose()


def test_an_app_that_reads_its_former_name_leaves_nothing_behind(shop: Shop) -> None:
    waiting = shop.add()
    both = Shop(shop.app.config["ASYNC_HOOKS_OUTBOX"], ASYNC_HOOKS_AUDIENCE=["store", "tests.app"])
    assert both.run("check").exit_code == 0
    assert both.state(waiting) == "available"
    both.store.database.engine.dispose()


def test_a_neighbour_on_the_same_tables_turns_nothing_red(shop: Shop) -> None:
    shop.add(task="of another app")
    neighbour = Shop(shop.app.config["ASYNC_HOOKS_OUTBOX"], ASYNC_HOOKS_AUDIENCE="blog")
    assert neighbour.run("check").exit_code == 0
    assert neighbour.run("health").exit_code == 0
    neighbour.store.database.engine.dispose()


def test_init_db_makes_the_tables_in_the_apps_own_database(tmp_path: Path) -> None:
    flask_sqlalchemy = pytest.importorskip("flask_sqlalchemy")
    app = plain_app(
        ASYNC_HOOKS_OUTBOX="app",
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'app.db'}",
    )
    db = flask_sqlalchemy.SQLAlchemy(app)
    AsyncHooks(app, db=db)
    assert "were created" in run(app, "init-db").output
    assert "up to date" in run(app, "init-db").output
    with app.app_context():
        db.engine.dispose()


# -- status


def test_status_shows_all_six_states_and_what_is_parked(anywhere: Shop) -> None:
    anywhere.run("init-db")
    anywhere.add()
    anywhere.add(task="post")
    anywhere.add(task="gone", receiver="crm")
    anywhere.run("pause", "mails")
    found = anywhere.json("status")
    assert found["counts"] == {
        "available": 3,
        "executing": 0,
        "waiting": 0,
        "completed": 0,
        "discarded": 0,
        "cancelled": 0,
    }
    assert found["paused"] == ["mails"]
    assert found["relays"] == []
    assert found["oldest_due_seconds"] >= 0
    assert [(w["task"], w["receiver"], w["is_known"]) for w in found["backlog"]] == [
        ("gone", "crm", False),
        ("mail", None, True),
        ("post", None, True),
    ]
    text = anywhere.run("status").output
    assert "3 available" in text
    assert "Paused       mails" in text
    assert [line for line in text.splitlines() if "parked" in line] == [
        "        1  gone  crm  parked: this code does not know it"
    ]


def test_status_shows_a_workers_name_queues_and_what_it_runs(anywhere: Shop) -> None:
    anywhere.run("init-db")
    me = anywhere.process[os.getpid()]
    anywhere.heartbeat(None, name="night shift", queues=["a", "b"])
    running, claimed, _ = (anywhere.add() for _ in range(3))
    anywhere.set(running, claimed, state="executing", process_id=me.id, lease="x")
    anywhere.set(running, started_at=anywhere.store.now())
    [relay] = anywhere.json("status")["relays"]
    assert (relay["name"], relay["queues"]) == ("night shift", ["a", "b"])
    assert relay["deliveries"] == [running]
    text = anywhere.run("status").output
    assert f"  worker night shift: queues a, b  runs {running}\n" in text
    me.liveness.end()


def test_status_shows_the_relays_and_their_problems(shop: Shop) -> None:
    shop.run("init-db")
    shop.heartbeat("No address\nis known.")
    [relay] = shop.json("status")["relays"]
    assert (relay["pid"], relay["is_alive"]) == (os.getpid(), True)
    datetime.fromisoformat(relay["started_at"])
    text = shop.run("status").output
    assert f"pid {os.getpid()}  alive  since " in text
    assert "problem: No address\\nis known." in text
    shop.process[os.getpid()].liveness.end()


def test_status_in_a_narrow_terminal_takes_two_lines_and_loses_no_word(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run("init-db")
    shop.heartbeat("No address is known. " + "long " * 50 + "end", name="night shift")
    monkeypatch.setenv("COLUMNS", "80")
    lines = shop.run("status").output.splitlines()
    first = next(number for number, line in enumerate(lines) if f"pid {os.getpid()}" in line)
    assert len(lines[first]) <= 80
    assert lines[first + 1].startswith("    worker night shift: all queues  problem: No address")
    assert lines[first + 1].endswith("long end")
    shop.process[os.getpid()].liveness.end()


# -- deliveries and why


def test_deliveries_filters_and_has_the_newest_first(shop: Shop) -> None:
    plain, mailed = shop.add(), shop.add(queue="mails", ref="order-7")
    failed = shop.discarded()

    def ids(*arguments: str) -> set[str]:
        return {found["id"] for found in shop.json("deliveries", *arguments)}

    assert ids() == {plain, mailed, failed}
    assert ids("--state", "discarded") == {failed}
    assert ids("--queue", "mails") == ids("--ref", "order-7") == {mailed}
    assert ids("--task", "mail") == {plain, mailed, failed}
    assert ids("--task", "other") == set()
    shop.set(plain, created_at=1e9)
    assert shop.json("deliveries")[-1]["id"] == plain
    limited = shop.run("deliveries", "--limit", "1")
    assert len(limited.stdout.splitlines()) == 2
    assert "the newest 1" in limited.stderr


def test_deliveries_as_json_has_every_field(shop: Shop) -> None:
    delivery_id = shop.discarded()
    [found] = shop.json("deliveries")
    with shop.app.app_context():
        delivery = shop.hooks.outbox.get(delivery_id)
    assert delivery is not None
    assert set(found) == set(delivery.__slots__)
    assert found["data"] == {"to": "a@b.c"}
    assert found["state"] == "discarded"
    assert datetime.fromisoformat(found["run_at"]) == delivery.run_at
    assert found["finished_at"] == "2001-09-09T01:46:40+00:00"


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_deliveries_fit_the_terminal_without_their_data(
    shop: Shop, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery_id = shop.discarded(error="ValueError: a\nb " + "long " * 50)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shop.run("deliveries").output.splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.startswith(delivery_id) for line in lines)
    assert any(line.endswith("...") for line in lines)
    assert "a@b.c" not in "".join(lines)
    if columns >= 80:
        assert "ValueError: a\\nb" in "".join(lines)


def test_deliveries_in_a_pipe_are_a_line_each(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shop.discarded(error="ValueError: " + "long " * 50 + "end")
    _, line = shop.run("deliveries").output.splitlines()
    assert line.endswith("long end")


def test_no_deliveries_are_a_sentence_and_an_empty_array(shop: Shop) -> None:
    assert shop.run("deliveries").output == "There are no such deliveries.\n"
    assert shop.json("deliveries") == []


def test_why_says_a_sentence_on_one_line(shop: Shop) -> None:
    delivery_id = shop.discarded(error="ValueError: a\nb")
    result = shop.run("why", delivery_id)
    assert result.exit_code == 0
    assert result.output.startswith("It was discarded at 2001-09-09")
    assert result.output.endswith("Last error: ValueError: a\\nb\n")
    found = shop.json("why", delivery_id)
    assert (found["id"], found["state"]) == (delivery_id, "discarded")


def test_why_exits_with_1_where_there_is_no_such_delivery(shop: Shop) -> None:
    result = shop.run("why", "nothing")
    assert result.exit_code == 1
    assert "No delivery 'nothing'" in result.output
    assert shop.json("why", "nothing", code=1)["state"] is None


# -- reschedule and delete


def test_what_waits_runs_at_the_time_it_is_rescheduled_to(anywhere: Shop) -> None:
    anywhere.run("init-db")
    waiting, held, done, running = (anywhere.add(run_at=1e9) for _ in range(4))
    anywhere.set(waiting, attempts=1, failures=1)
    anywhere.set(held, state="held")
    anywhere.set(done, state="completed", finished_at=1e9)
    anywhere.set(running, state="executing")
    when, at = "2027-01-31T18:00+01:00", datetime(2027, 1, 31, 17, tzinfo=UTC)
    for changed in (waiting, held):
        result = anywhere.run("reschedule", changed, when)
        assert (result.output, result.exit_code) == (f"Delivery {changed} is rescheduled.\n", 0)
    for refused in (done, running):
        result = anywhere.run("reschedule", refused, when)
        assert result.exit_code == 1
        assert result.stderr == (
            f"Delivery {refused} is not rescheduled: it is executing, waits for its children or "
            "has finished.\n"
        )
    assert "No delivery 'nothing'" in anywhere.run("reschedule", "nothing", when).stderr
    outbox = state_of(anywhere.app).outbox
    found = [outbox.get(one) for one in (waiting, held, done, running)]
    assert [one.run_at == at for one in found] == [True, True, False, False]
    assert found[0].attempts == 1
    assert [row.state for row in outbox.rows(ids=[held])] == ["held"]


def test_no_naive_time_and_no_other_apps_delivery_is_rescheduled(shop: Shop) -> None:
    delivery = shop.add(run_at=1e9)
    outbox = state_of(shop.app).outbox
    with pytest.raises(ConfigError, match="expected 'run_at' to be a datetime with a time zone"):
        outbox.reschedule(delivery, datetime(2027, 1, 31))
    shop.set(delivery, audience="another")
    assert not outbox.reschedule(delivery, datetime(2027, 1, 31, tzinfo=UTC))
    assert not outbox.delete(delivery)


def test_what_finished_is_deleted_and_what_did_not_is_not(anywhere: Shop) -> None:
    anywhere.run("init-db")
    waiting, running, done = anywhere.add(), anywhere.add(), anywhere.discarded()
    anywhere.set(running, state="executing")
    for refused in (waiting, running):
        result = anywhere.run("delete", refused)
        assert result.exit_code == 1
        assert f"Delivery {refused} is not deleted: it or another part of its" in result.stderr
    result = anywhere.run("delete", done)
    assert (result.output, result.exit_code) == (f"Delivery {done} is deleted.\n", 0)
    again = anywhere.run("delete", done)
    assert (again.exit_code, f"No delivery {done!r}" in again.stderr) == (1, True)
    states = [anywhere.state(one) for one in (waiting, running, done)]
    assert states == ["available", "executing", "gone"]


def test_a_fan_out_is_deleted_whole_once_all_of_it_has_finished(anywhere: Shop) -> None:
    anywhere.run("init-db")
    parent, other = anywhere.discarded(), anywhere.discarded()
    one, two = (anywhere.add(receiver=name, parent_id=parent) for name in ("one", "two"))
    anywhere.set(one, state="completed", finished_at=1e9)
    assert [anywhere.run("delete", part).exit_code for part in (parent, one, two)] == [1, 1, 1]
    anywhere.run("cancel", two)
    assert anywhere.run("delete", one).exit_code == 0
    assert [anywhere.state(each) for each in (parent, one, two)] == [
        "discarded",
        "gone",
        "cancelled",
    ]
    assert anywhere.run("delete", parent).exit_code == 0
    states = [anywhere.state(each) for each in (parent, two, other)]
    assert states == ["gone", "gone", "discarded"]


# -- pause and resume


def test_a_pause_and_its_end_are_told_where_they_change_something(
    anywhere: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "async_hooks")
    anywhere.run("init-db")
    told: list[str] = []

    def paused(sender: Flask, *, queue: str) -> None:
        told.append(f"{queue} paused by {current_app.name}")

    def resumed(sender: Flask, *, queue: str) -> None:
        told.append(f"{queue} resumed by {current_app.name}")

    with (
        queue_paused.connected_to(paused, anywhere.app),
        queue_resumed.connected_to(resumed, anywhere.app),
    ):
        anywhere.run("resume", "mails")
        assert told == []
        for command in ("pause", "pause", "resume", "resume"):
            anywhere.run(command, "mails")
    assert told == ["mails paused by tests.app", "mails resumed by tests.app"]
    lines = [line for line in caplog.messages if line.startswith("Queue")]
    assert lines == ["Queue 'mails' was paused.", "Queue 'mails' was resumed."]


# -- retry and cancel


def test_retry_makes_the_named_ones_due(shop: Shop) -> None:
    failed, running = shop.discarded(), shop.add()
    shop.set(running, state="executing")
    result = shop.run("retry", failed, running, "nothing")
    assert result.exit_code == 1
    assert f"Delivery {failed} is retried." in result.stdout
    assert f"Delivery {running} is not retried: it is executing" in result.stderr
    assert "No delivery 'nothing'" in result.stderr
    assert shop.state(failed) == "available"
    assert shop.state(running) == "executing"
    assert shop.run("retry", failed).exit_code == 0


def test_retry_of_a_state_asks_with_the_count(shop: Shop) -> None:
    ids = [shop.discarded() for _ in range(3)]
    refused = shop.run("retry", "--state", "discarded", answer="n\n")
    assert refused.exit_code == 1
    assert "Retry 3 deliveries? [y/N]" in refused.output
    assert shop.state(ids[0]) == "discarded"
    assert shop.run("retry", "--state", "discarded").exit_code == 1  # Nobody answers.
    agreed = shop.run("retry", "--state", "discarded", answer="y\n")
    assert agreed.exit_code == 0
    assert agreed.output.endswith("Retried 3 deliveries.\n")
    assert {shop.state(one) for one in ids} == {"available"}
    again = shop.run("retry", "--state", "discarded")
    assert (again.exit_code, again.output) == (0, "There is nothing to retry.\n")


def test_retry_of_a_state_keeps_to_its_task_and_queue(shop: Shop) -> None:
    wanted = shop.discarded(queue="mails")
    others = [shop.discarded(), shop.discarded(task="gone", queue="mails")]
    shop.run("retry", "--state", "discarded", "--task", "mail", "--queue", "mails", "--yes")
    assert shop.state(wanted) == "available"
    assert {shop.state(other) for other in others} == {"discarded"}


def test_retry_of_a_state_never_runs_a_fan_outs_parent_again(anywhere: Shop) -> None:
    anywhere.run("init-db")
    parent, child, single = (anywhere.add() for _ in range(3))
    anywhere.set(parent, single, state="completed", finished_at=1e9)
    anywhere.set(child, parent_id=parent, state="discarded", finished_at=1e9)
    result = anywhere.run("retry", "--state", "completed", "--yes")
    assert result.output == "Retried 1 delivery.\n"
    states = [anywhere.state(one) for one in (parent, child, single)]
    assert states == ["completed", "discarded", "available"]


def test_many_are_done_in_steps_that_show_how_far_they_are(shop: Shop) -> None:
    number = 2 * BATCH + 3
    envelopes = [Envelope(id=new_id(), task="mail", body="{}") for _ in range(number)]
    shop.store.add(envelopes)
    cancelled = shop.run("cancel", "--state", "available", "--yes").output.splitlines()
    assert cancelled == [
        f"Cancelled {BATCH} of {number} ...",
        f"Cancelled {2 * BATCH} of {number} ...",
        f"Cancelled {number} deliveries.",
    ]
    assert f"Retried {number}" in shop.run("retry", "--state", "cancelled", "--yes").output
    assert shop.json("status")["counts"]["available"] == number


def test_each_delivery_that_a_cancel_ended_is_told(
    anywhere: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "async_hooks")
    anywhere.run("init-db")
    parent, failed = anywhere.add(), anywhere.discarded()
    child = anywhere.add(receiver="crm", parent_id=parent)
    anywhere.set(parent, state="completed", finished_at=1e9)
    several = [anywhere.add(queue="mails") for _ in range(3)]
    told: list[tuple[str, str | None]] = []

    def cancelled(sender: Flask, *, envelope: Envelope) -> None:
        assert anywhere.state(envelope.id) == "cancelled"  # It is committed.
        assert sender is anywhere.app is current_app._get_current_object()  # type: ignore[attr-defined]
        told.append((envelope.id, envelope.receiver))

    with task_cancelled.connected_to(cancelled, anywhere.app):
        anywhere.run("cancel", parent, failed, "nothing")
        assert told == [(child, "crm")]
        anywhere.run("cancel", "--state", "available", "--queue", "mails", "--yes")
        anywhere.run("cancel", parent, *several)
    assert told == [(child, "crm"), *((one, None) for one in several)]
    line = f"Task 'mail', receiver 'crm' (envelope {child}, attempt 0) was cancelled."
    assert [record.levelname for record in caplog.records if record.getMessage() == line] == [
        "INFO"
    ]


def test_cancel_ends_what_waits_and_what_executes(shop: Shop) -> None:
    waiting, running, failed = shop.add(), shop.add(), shop.discarded()
    shop.set(running, state="executing")
    assert shop.run("cancel", waiting).output == f"Delivery {waiting} is cancelled.\n"
    assert shop.run("cancel", "--state", "executing", "--yes").output == "Cancelled 1 delivery.\n"
    result = shop.run("cancel", failed)
    assert result.exit_code == 1
    assert f"Delivery {failed} is not cancelled: it had already finished." in result.stderr
    states = [shop.state(one) for one in (waiting, running, failed)]
    assert states == ["cancelled", "cancelled", "discarded"]


# -- pause, resume, purge


def test_a_launch_is_paused_as_a_whole_and_status_shows_how_far_it_is(shop: Shop) -> None:
    parent = Envelope(id=new_id(), task="mail", body="{}")
    children = [parent.for_receiver(name, number) for number, name in enumerate("ab")]
    shop.store.add([parent, *children])
    shop.set(children[0].id, state="discarded", finished_at=1e9)
    assert f"  {parent.id}  1 of 2 done  1 failed\n" in shop.run("status").output
    [group] = shop.json("status")["groups"]
    assert (group["id"], group["counts"]) == (parent.id, {"available": 1, "discarded": 1})
    assert f"{children[1].id} (b: available)" in shop.run("why", parent.id).output
    paused = shop.run("pause-delivery", parent.id)
    assert (paused.exit_code, paused.output) == (0, f"Delivery {parent.id} is paused.\n")
    assert f"{children[1].id} (b: paused)" in shop.run("why", parent.id).output
    assert shop.run("pause-delivery", parent.id).exit_code == 1
    assert shop.run("resume-delivery", parent.id).output == f"Delivery {parent.id} is resumed.\n"
    again = shop.run("resume-delivery", parent.id)
    assert (again.exit_code, again.stderr) == (1, f"Delivery {parent.id} was not paused.\n")
    assert "No delivery 'nothing'" in shop.run("resume-delivery", "nothing").stderr


def test_pause_and_resume_say_what_they_did(shop: Shop) -> None:
    assert shop.run("pause", "mails").output == "The queue 'mails' is paused.\n"
    assert shop.run("pause", "mails").exit_code == 0
    assert shop.json("status")["paused"] == ["mails"]
    assert shop.run("resume", "mails").output == "The queue 'mails' is resumed.\n"
    assert shop.run("resume", "mails").output == "The queue 'mails' was not paused.\n"
    assert shop.json("status")["paused"] == []


def test_purge_deletes_what_finished_long_enough_ago(shop: Shop) -> None:
    old, fresh, waiting = shop.discarded(), shop.discarded(), shop.add()
    shop.set(fresh, finished_at=shop.store.now() - 7200)
    refused = shop.run("purge", answer="n\n")
    assert refused.exit_code == 1
    assert "Purge 1 delivery that finished more than 7 days ago?" in refused.output
    assert shop.run("purge", "--yes").output == "Purged 1 delivery.\n"
    assert [shop.state(one) for one in (old, fresh, waiting)] == ["gone", "discarded", "available"]
    assert shop.run("purge", "--older-than", "3h", "--yes").output == "There is nothing to purge.\n"
    assert shop.run("purge", "--older-than", "1.5h", "--yes").output == "Purged 1 delivery.\n"
    assert shop.state(waiting) == "available"


# -- check and health


def test_check_is_content_when_this_code_knows_the_backlog(anywhere: Shop) -> None:
    anywhere.run("init-db")
    anywhere.add()
    anywhere.add(task="post")  # A former name.
    result = anywhere.run("check")
    assert (result.exit_code, result.output) == (0, "2 unfinished deliveries, all known.\n")
    assert anywhere.json("check")["unfinished"] == 2


def test_check_names_what_this_code_does_not_know(anywhere: Shop) -> None:
    anywhere.run("init-db")
    for _ in range(2):
        anywhere.add(task="gone")
    anywhere.add(receiver="crm")
    result = anywhere.run("check")
    assert result.exit_code == 1
    what = "is unknown to this code, and has"
    assert f"Error: Task 'gone' {what} 2 unfinished deliveries." in result.stderr
    assert f"Receiver 'crm' of task 'mail' {what} 1 unfinished delivery." in result.stderr
    assert "'aliases'" in result.stderr
    found = anywhere.json("check", code=1)
    assert found["ok"] is False
    assert found["unknown"] == [
        {"task": "gone", "receiver": None, "count": 2},
        {"task": "mail", "receiver": "crm", "count": 1},
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_check_makes_no_tables(kind: str, tmp_path: Path) -> None:
    with fresh_database(kind, tmp_path) as url:
        shop = Shop(url)
        result = shop.run("check")
        if kind == "sqlite":  # Its tables are made at their first use.
            assert (result.exit_code, result.output) == (
                0,
                "0 unfinished deliveries, all known.\n",
            )
        else:
            assert result.exit_code == 1
            assert (
                f"tables are missing in {shop.store.database.engine.url!r}. Run: flask"
                in result.stderr
            )
        with shop.store.database.engine.connect() as connection:
            assert tables.version_of(connection) == 0
        shop.store.database.engine.dispose()


def test_check_refuses_tables_of_another_version(shop: Shop) -> None:
    shop.run("init-db")
    remedies = {1: "flask async-hooks init-db --recreate", schema.VERSION + 1: "Update async_hooks"}
    for version, remedy in remedies.items():
        shop.store.database.execute(update(schema.version).values(version=version))
        result = shop.run("check")
        assert result.exit_code == 1
        assert f"have version {version}; this code" in result.stderr
        assert remedy in result.stderr


def test_check_without_an_outbox_is_about_the_configuration() -> None:
    app, hooks = make_app()
    register_mail(hooks)
    result = run(app, "check")
    assert result.exit_code == 0
    assert result.output == "The configuration is valid; there is no outbox to check.\n"


def test_check_warns_of_tasks_that_reach_nobody(action: str) -> None:
    app, hooks = make_app()
    assert "Warning: No task is registered." in run(app, "check").stderr
    hooks.register(type("Unheard", (AsyncTask,), {"action": action, "name": f"task of {action}"}))
    result = run(app, "check")
    assert result.exit_code == 0
    assert f"Warning: Task 'task of {action}' reaches no receiver." in result.stderr


@pytest.mark.parametrize("url", [None, "sqlite:///outbox.db"])
def test_check_names_receivers_that_share_a_name(action: str, url: str | None) -> None:
    app, hooks = make_app(ASYNC_HOOKS_OUTBOX=url)
    make_task(hooks, action, name="order", aliases=["former"])
    receivers: list[Callable[..., Any]] = [lambda sender, n=n: n for n in range(3)]
    for receiver in receivers:
        async_signal(action).connect(receiver)
    result = run(app, "check")
    assert result.exit_code == (0 if url is None else 1)
    severity = "Warning" if url is None else "Error"
    assert f"{severity}: 3 receivers of task 'order' are called 'tests.test_cli." in result.stderr
    assert result.stderr.count("3 receivers") == 1
    assert "hooks.receiver(…, name=…)" in result.stderr


def test_health_tells_a_monitor_in_one_line(shop: Shop) -> None:
    assert shop.run("health").output == "OK: nothing is due; relays alive: 0.\n"
    assert shop.json("health") == {
        "ok": True,
        "problem": None,
        "oldest_due_seconds": None,
        "relays_alive": 0,
        "overdue": [],
        "skew_seconds": None,
    }
    late = shop.add()
    shop.set(late, run_at=shop.store.now() - 1000)
    result = shop.run("health")
    assert result.exit_code == 1
    assert result.output.startswith("Problem: A delivery has been due for 100")
    assert result.output.count("\n") == 1
    assert shop.json("health", code=1)["oldest_due_seconds"] >= 1000
    shop.heartbeat(None)
    assert shop.run("health", "--patience", "1h").exit_code == 0
    assert shop.run("health", "--patience", "5m").exit_code == 1
    shop.process[os.getpid()].liveness.end()


def test_health_without_its_database_is_still_an_answer() -> None:
    shop = Shop("postgresql://postgres@127.0.0.1:1/shop")
    found = shop.json("health", code=1)
    assert found["ok"] is False
    assert "can't be used" in found["problem"]


# -- a process of its own

SITE = """
import os
from flask import Flask
from async_hooks import AsyncHooks, AsyncTask, async_signal

hooks = AsyncHooks()


@hooks.register
class Mail(AsyncTask):
    action = "cli_mail"
    name = "mail"

    def run_action(self, data):
        pass


def create_app():
    app = Flask(__name__, instance_path=os.environ["FOLDER"])
    app.config.from_prefixed_env("SHOP")
    hooks.init_app(app)
    return app
"""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs ``flask async-hooks …`` as an operator does."""
    (tmp_path / "site_of_cli.py").write_text(SITE)

    def run_it(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flask", "--app", "site_of_cli", "async-hooks", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "FOLDER": str(tmp_path),
                "SHOP_SECRET_KEY": "a key for tests, thirty-two bytes or more",
                "SHOP_ASYNC_HOOKS_OUTBOX": "sqlite:///outbox.db",
                **settings,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run_it


@pytest.mark.slow
def test_a_process_of_its_own_says_and_exits_the_same(command: Command) -> None:
    made = command("init-db")
    text = f"The outbox's tables were created, version {schema.VERSION}.\n"
    assert (made.returncode, made.stdout) == (0, text)
    assert json.loads(command("status", "--json").stdout)["counts"]["available"] == 0
    assert command("why", "nothing").returncode == 1


@pytest.mark.slow
def test_check_says_a_wrong_configuration_without_a_traceback(command: Command) -> None:
    wrong = command("check", SHOP_ASYNC_HOOKS_LEASE="-1")
    assert wrong.returncode == 1
    assert "expected 'ASYNC_HOOKS_LEASE' to be a positive number of seconds" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_the_commands_are_there_without_sqlalchemy() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; import async_hooks.cli"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# -- what the library does not keep yet


@pytest.mark.parametrize("arguments", [("resume", "default"), ("retry",)], ids=lambda a: a[0])
def test_a_command_does_not_relay_itself(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shop = Shop(f"sqlite:///{tmp_path / 'outbox.db'}", ASYNC_HOOKS_RELAY=True)
    failed = shop.discarded(run_at=4e9)
    before = set(threading.enumerate())
    try:
        shop.run(*arguments, *([failed] if arguments == ("retry",) else []))
        assert set(threading.enumerate()) - before == set()
    finally:
        relay: Any = state_of(shop.app).relay
        relay.stop(5)


def test_a_launch_into_a_paused_queue_waits(tmp_path: Path) -> None:
    shop = Shop(f"sqlite:///{tmp_path / 'outbox.db'}", ASYNC_HOOKS_RELAY=True)
    relay: Any = state_of(shop.app).relay
    shop.run("pause", "default")
    relay.start()
    try:
        assert shop.process[os.getpid()].is_registered.wait(20)
        with shop.app.app_context(), shop.app.test_request_context():
            mail = state_of(shop.app).tasks.find("mail")
            assert mail is not None
            delivery_id = mail.dispatch({})
        assert shop.state(delivery_id) == "available"
    finally:
        relay.stop(5)


@pytest.mark.slow
def test_a_command_leaves_nothing_in_the_shared_folder(command: Command, tmp_path: Path) -> None:
    folder = runtime_dir(str((tmp_path / "outbox.db").resolve()))
    assert folder is not None
    before = set(folder.iterdir())
    command("init-db")
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection, connection:
        columns = connection.execute("PRAGMA table_info(async_hooks_processes)").fetchall()
        values = ", ".join("1" for _ in columns)
        connection.execute(f"INSERT INTO async_hooks_processes VALUES ({values})")
    assert command("health").returncode == 0
    # "host_id" names the folder itself, and "tables" says that there are some.
    of_all = {folder / "host_id", folder / "tables"}
    left = set(folder.iterdir()) - before - of_all
    for path in left:
        path.unlink()
    assert left == set()
