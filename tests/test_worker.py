"""The worker: its work in this process, and its supervision of children that are shell commands."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app, g, request

from async_hooks import AsyncTask, current_envelope
from async_hooks.cli import cli
from async_hooks.errors import ConfigError, OutboxRequired, OutboxUnavailable
from async_hooks.signals import worker_error, worker_started, worker_stopped
from async_hooks.state import state_of
from async_hooks.worker.supervisor import AT_ONCE, FAILED, MISCONFIGURED, OK, Child, supervise
from async_hooks.worker.worker import Exit, Options, Work
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts

DOCS = Path(__file__).parent.parent / "docs" / "worker.md"

NAMED = Options(name="w1")
ONCE, DRAIN = NAMED._replace(once=True), NAMED._replace(drain=True)


class Shop:
    """An app whose web processes only add, with a task that notes what it runs."""

    def __init__(self, folder: Path, action: str, **config: Any) -> None:
        self.app, self.hooks = make_app(
            ASYNC_HOOKS_TRANSPORT="loopback",
            ASYNC_HOOKS_OUTBOX=f"sqlite:///{folder / 'outbox.db'}",
            **{"ASYNC_HOOKS_RELAY": False, **config},
        )
        self.ran: list[Any] = []
        self.deed: Callable[[], Any] = lambda: None

        def run_action(task: AsyncTask, data: dict[str, Any]) -> None:
            self.ran.append(data["number"])
            if data["deed"]:
                self.deed()

        self.task = make_task(self.hooks, action, run_action=run_action, name="work")

    def add(self, number: Any, *, deed: bool = False, **options: Any) -> str:
        with self.app.app_context():
            return self.task.dispatch({"number": number, "deed": deed}, **options)

    def work(self, **options: Any) -> Exit:
        return Work(self.app, NAMED._replace(**options)).run()

    def get(self, delivery_id: str) -> Any:
        return state_of(self.app).outbox.get(delivery_id)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = state_of(self.app).outbox.counts()
        return {state: count for state, count in found.items() if count}


@pytest.fixture
def shop(tmp_path: Path, action: str) -> Shop:
    return Shop(tmp_path, action)


# -- work


def test_queues_in_their_order_and_in_each_by_priority_and_age(shop: Shop) -> None:
    for number in range(6):
        shop.add(f"b{number}", queue="b")
        shop.add(f"a{number}", queue="a", priority=10 - number)
        shop.add(f"c{number}", queue="c")
    assert shop.work(drain=True, queues=["b", "a"]) is Exit.DONE
    assert shop.ran == [f"b{n}" for n in range(6)] + [f"a{n}" for n in reversed(range(6))]
    assert shop.counts() == {"available": 6, "completed": 12}


def test_each_delivery_is_a_request_of_its_own_in_an_empty_context(shop: Shop) -> None:
    seen = []

    def look() -> None:
        seen.append((request.path, "caller" in g, bool(current_envelope)))
        g.caller = "a run"

    shop.deed = look
    shop.add(1, deed=True)
    shop.add(2, deed=True)
    with shop.app.app_context():
        g.caller = "the worker"
        shop.work(drain=True)
    assert seen == [("/async-hooks/run", False, True)] * 2


def test_concurrency_is_the_workers_own(tmp_path: Path, action: str) -> None:
    shop = Shop(tmp_path, action, ASYNC_HOOKS_CONCURRENCY=1)
    all_here = threading.Barrier(3, timeout=20)
    shop.deed = all_here.wait
    for number in range(3):
        shop.add(number, deed=True)
    assert shop.work(drain=True, concurrency=3) is Exit.DONE
    assert shop.counts() == {"completed": 3}


def test_once_runs_one_and_says_whether_it_succeeded(shop: Shop) -> None:
    def fail() -> None:
        raise ValueError("no")

    assert shop.work(once=True, quota=1) is Exit.DONE  # Nothing is due.
    shop.add(1)
    shop.deed = fail
    failed = shop.add(2, deed=True)
    assert shop.work(once=True, quota=1) is Exit.DONE
    assert shop.ran == [1]
    assert shop.work(once=True, quota=1) is Exit.FAILED
    assert shop.get(failed).attempts == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, BaseException])
def test_whatever_a_receiver_raises_the_next_is_run(shop: Shop, error: type[Exception]) -> None:
    def fail() -> None:
        raise error("no")

    shop.app.config.update(TESTING=True, ASYNC_HOOKS_TESTING="live")  # Flask lets it out.
    shop.deed = fail
    failed = shop.add(1, deed=True)
    shop.add(2)
    assert shop.work(drain=True) is Exit.DONE
    assert shop.counts() == {"available": 1, "completed": 1}
    assert shop.get(failed).error.startswith(error.__name__)


def test_a_worker_runs_nothing_of_an_app_under_test(shop: Shop) -> None:
    shop.add(1)
    shop.app.testing = True
    with pytest.raises(ConfigError, match=r"is TESTING.* Set 'ASYNC_HOOKS_TESTING' to 'live'"):
        shop.work(drain=True)
    assert (shop.ran, shop.counts()) == ([], {"available": 1})


def test_a_used_up_quota_asks_for_another_process(shop: Shop) -> None:
    for number in range(3):
        shop.add(number)
    assert shop.work(quota=2) is Exit.RESTART
    assert shop.work(drain=True, quota=2) is Exit.DONE
    assert shop.ran == [0, 1, 2]


def test_what_a_run_launches_keeps_to_the_order_and_to_the_queues(shop: Shop) -> None:
    def launch() -> None:
        shop.add("elsewhere", queue="b")
        shop.add("last", priority=20)

    shop.deed = launch
    shop.add(0, deed=True)
    for number in range(1, 8):
        shop.add(number)
    assert shop.work(drain=True, queues=["default"]) is Exit.DONE
    assert shop.ran == [*range(8), "last"]


def test_its_signals_are_sent_in_an_app_context(shop: Shop) -> None:
    said: list[Any] = []

    def started(sender: Flask, **facts: Any) -> None:
        said.append(("started", current_app.name, facts))

    def stopped(sender: Flask, **facts: Any) -> None:
        said.append(("stopped", current_app.name, facts))

    with (
        worker_started.connected_to(started, shop.app),
        worker_stopped.connected_to(stopped, shop.app),
    ):
        shop.work(once=True, quota=1, queues=["a"])
    facts = {"name": "w1", "queues": ["a"]}
    assert said == [("started", "tests.app", facts), ("stopped", "tests.app", facts)]


@pytest.mark.parametrize(
    ("died", "facts"),
    [(-9, {"exit_code": None, "signal": 9}), (0, {"exit_code": 0, "signal": None})],
)
def test_a_death_before_it_is_told_before_it_starts(
    died: int, facts: dict[str, Any], shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[Any] = []

    def error(sender: Flask, **facts: Any) -> None:
        said.append((current_app.name, facts))

    def started(sender: Flask, **facts: Any) -> None:
        said.append("started")

    shop.add(1)
    with (
        worker_error.connected_to(error, shop.app),
        worker_started.connected_to(started, shop.app),
    ):
        assert Work(shop.app, ONCE).run(died) is Exit.FAILED
        assert shop.ran == []
        assert Work(shop.app, DRAIN).run(died) is Exit.DONE
        assert shop.ran == [1]
    told = ("tests.app", {"name": "w1", **facts})
    assert said == [told, told, "started"]
    how = "was killed by signal 9" if died else "exited with code 0"
    assert f"Worker 'w1' continues after its process {how}." in caplog.messages


def test_told_to_end_it_gives_back_what_waits(shop: Shop, facts: Facts) -> None:
    def outlast() -> None:
        relay: Any = state_of(shop.app).relay
        assert relay._pool[os.getpid()].stopping.wait(20)

    shop.deed = outlast
    shop.add(1, deed=True)
    rest = [shop.add(number) for number in (2, 3)]
    work = Work(shop.app, NAMED)
    thread = threading.Thread(target=work.run)
    thread.start()
    facts.wait_for("started")
    [relay] = state_of(shop.app).outbox.relays()
    assert (relay.name, relay.queues, len(relay.deliveries)) == ("w1", [], 1)
    work.end()
    thread.join(20)
    assert shop.counts() == {"available": 2, "completed": 1}
    assert [shop.get(one).attempts for one in rest] == [0, 0]
    assert state_of(shop.app).outbox.relays() == []


@pytest.mark.parametrize("options", [ONCE, DRAIN], ids=["once", "drain"])
def test_without_a_database_what_ends_by_itself_does_not_wait(options: Options) -> None:
    app, _ = make_app(
        ASYNC_HOOKS_TRANSPORT="in_process",
        ASYNC_HOOKS_OUTBOX="postgresql://postgres@127.0.0.1:1/shop",
    )
    with pytest.raises(OutboxUnavailable, match="can't be used"):
        Work(app, options).run()


def test_where_nothing_waits_there_is_nothing_to_work(tmp_path: Path) -> None:
    app, _ = make_app(ASYNC_HOOKS_OUTBOX=f"sqlite:///{tmp_path / 'outbox.db'}")  # Eager.
    with pytest.raises(OutboxRequired, match="The worker"):
        Work(app, NAMED)


# -- supervision


class Children:
    """Starts a shell command for each child, in turn; the last one is repeated."""

    def __init__(self, *commands: str, meanwhile: Callable[[int], object] = lambda n: None) -> None:
        self.commands = commands
        self.meanwhile = meanwhile
        self.started = 0
        #: What each was told of the one before it.
        self.told: list[int | None] = []

    def __call__(self, died: int | None) -> Child:
        self.told.append(died)
        command = self.commands[min(self.started, len(self.commands) - 1)]
        self.started += 1
        self.meanwhile(self.started)
        if command == "none":
            raise BlockingIOError("Resource temporarily unavailable")
        mask: list[signal.Signals] = []
        parent_end, child_end = socket.socketpair()
        with child_end:
            actions = [(os.POSIX_SPAWN_DUP2, child_end.fileno(), 3)]
            arguments = ["sh", "-c", command]
            pid = os.posix_spawn("/bin/sh", arguments, {}, file_actions=actions, setsigmask=mask)
        return Child(pid, parent_end.detach())


def says(ending: Exit) -> str:
    return f"printf '\\{ending.value:o}' >&3"


def ends(ending: Exit) -> str:
    return f"{says(ending)}; exit {ending.value}"


@pytest.fixture(autouse=True)
def no_zombie_is_left() -> Iterator[None]:
    before = _children()
    yield
    assert _children() <= before


def _children() -> set[str]:
    found: set[str] = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # It has ended just now.
            found.update((thread / "children").read_text().split())
    return found


@pytest.mark.parametrize(
    ("ending", "code"),
    [(Exit.DONE, OK), (Exit.FAILED, FAILED), (Exit.MISCONFIGURED, MISCONFIGURED)],
)
@pytest.mark.parametrize("options", [ONCE, DRAIN], ids=["once", "drain"])
def test_what_ends_by_itself_exits_as_its_child_says(
    options: Options, ending: Exit, code: int
) -> None:
    children = Children(ends(ending))
    assert supervise(children, options) == code
    assert children.started == 1


def test_a_new_child_follows_a_used_up_and_a_crashed_one() -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    more, done = ends(Exit.RESTART), ends(Exit.DONE)
    children = Children(more, "kill -9 $$", more, "exit 0", "none", done)
    assert supervise(children, DRAIN) == OK
    assert children.started == 6
    assert children.told == [None, None, -9, None, 0, 0]  # Each death is told once, to who began.
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize(
    ("command", "how"),
    [
        *((f"exit {code.value}", f"with code {code.value}") for code in Exit),
        (f"{says(Exit.DONE)}; kill -9 $$", "by signal 9"),
        (f"{says(Exit.DONE)}; exit 3", "with code 3"),
        (f"{says(Exit.RESTART)}; exit {Exit.DONE.value}", f"with code {Exit.DONE.value}"),
        (f"printf x >&3; exit {Exit.DONE.value}", f"with code {Exit.DONE.value}"),
        (f"sleep 3 & exit {Exit.DONE.value}", f"with code {Exit.DONE.value}"),
    ],
)
@pytest.mark.parametrize("options", [ONCE, DRAIN], ids=["once", "drain"])
def test_an_exit_code_that_the_child_did_not_announce_is_a_crash(
    options: Options, command: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    children = Children(command, ends(Exit.DONE))
    assert supervise(children, options) == (FAILED if options.once else OK)
    assert children.started == 2
    [_, died] = children.told
    assert died is not None
    assert how == (f"by signal {-died}" if died < 0 else f"with code {died}")
    assert caplog.messages == [f"Worker 'w1': its process ended {how}."]


@pytest.mark.parametrize("teller", [ends(Exit.FAILED), ends(Exit.MISCONFIGURED), "kill -9 $$"])
def test_a_crash_is_the_failure_of_once_whatever_becomes_of_who_tells_of_it(
    teller: str, caplog: pytest.LogCaptureFixture
) -> None:
    children = Children("kill -9 $$", teller)
    assert supervise(children, ONCE) == FAILED
    assert children.told == [None, -9]
    assert caplog.messages == ["Worker 'w1': its process ended by signal 9."]


def test_a_death_is_told_by_the_first_child_that_can_load_the_app() -> None:
    def end_with_the_last(started: int) -> None:
        if started == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    unloadable = ends(Exit.MISCONFIGURED)
    commands = (ends(Exit.RESTART), "exit 3", unloadable, "none", "sleep 60")
    children = Children(*commands, meanwhile=end_with_the_last)
    assert supervise(children, NAMED) == OK
    assert children.told == [None, None, 3, 3, 3]


def test_an_app_that_can_not_be_loaded_ends_the_worker_only_at_its_start() -> None:
    assert supervise(Children(ends(Exit.MISCONFIGURED)), NAMED) == MISCONFIGURED

    def end_after_two(started: int) -> None:
        if started == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    children = Children(
        ends(Exit.RESTART), ends(Exit.MISCONFIGURED), "sleep 60", meanwhile=end_after_two
    )
    assert supervise(children, NAMED) == OK
    assert children.started == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_a_child_is_being_started_reaches_it(number: int) -> None:
    children = Children("sleep 60", meanwhile=lambda started: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert supervise(children, NAMED) == OK
    assert children.started == 1
    assert signal.getsignal(number) == before


def test_a_signal_just_before_a_child_is_started_starts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock:
        @staticmethod
        def monotonic() -> float:  # What is asked last before.
            os.kill(os.getpid(), signal.SIGTERM)
            return 0.0

    monkeypatch.setattr("async_hooks.worker.supervisor.time", Clock)
    children = Children("sleep 60")
    assert supervise(children, NAMED) == OK
    assert children.started == 0


def test_two_signals_kill_the_child() -> None:
    def tell_twice(started: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    deaf = "trap '' TERM; sleep 60 & wait; wait"
    assert supervise(Children(deaf, meanwhile=tell_twice), NAMED) == AT_ONCE


def test_its_time_counts_over_all_its_children_and_is_no_signal_of_anybodys() -> None:
    def tell_the_second(started: int) -> None:
        if started == 2:
            os.kill(os.getpid(), signal.SIGALRM)
            os.kill(os.getpid(), signal.SIGTERM)

    slow = f"trap '{says(Exit.RESTART)}; exit 83' TERM; sleep 60 & wait"
    children = Children(ends(Exit.RESTART), slow, meanwhile=tell_the_second)
    before = signal.getsignal(signal.SIGALRM)
    assert supervise(children, NAMED._replace(max_time=3600)) == OK
    assert children.started == 2
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_when_its_time_is_over_the_child_is_told_to_end() -> None:
    children = Children(ends(Exit.RESTART))  # Replaced for ever.
    assert supervise(children, NAMED._replace(max_time=0.2)) == OK
    assert supervise(Children("sleep 60"), NAMED._replace(max_time=0.2)) == OK


def test_a_signal_between_two_children_starts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Tells(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    logger, handler = logging.getLogger("async_hooks"), Tells()
    logger.addHandler(handler)
    try:
        children = Children("exit 1")
        assert supervise(children, NAMED) == OK
    finally:
        logger.removeHandler(handler)
    assert children.started == 1


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        children = Children(
            ends(Exit.RESTART),
            ends(Exit.DONE),
            meanwhile=lambda started: os.kill(os.getpid(), signal.SIGHUP),
        )
        assert supervise(children, DRAIN) == OK
        assert children.started == 2
    finally:
        signal.signal(signal.SIGHUP, before)


# -- the command and its page


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--concurrency", "0"], "x>=1"),
        (["--max-deliveries", "0"], "x>=1"),
        (["--max-rss", "much"], "not a valid integer"),
        (["--name", "a\nb"], "without control characters"),
        (["--name", "a" * 256], "at most 255 characters"),
        (["--queue", ""], "without control characters"),
        (["--fresh"], "only from a command line"),
    ],
)
def test_bad_options_are_a_usage_error(shop: Shop, options: list[str], complaint: str) -> None:
    result = shop.app.test_cli_runner().invoke(cli, ["worker", *options])
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())


def test_its_page_names_every_option_and_exit_code() -> None:
    text = DOCS.read_text()
    rows = re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE)
    assert rows == [parameter.opts[0] for parameter in cli.commands["worker"].params]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert codes == [OK, FAILED, MISCONFIGURED, AT_ONCE]


def test_its_pages_files_are_well_formed() -> None:
    found: dict[str, Any] = {}
    for block in re.findall(r"```ini\n(.*?)```", DOCS.read_text(), re.DOTALL):
        parser = ConfigParser(interpolation=None)
        parser.read_string(block)
        found.update(parser)
    assert set(found) == {"DEFAULT", "Unit", "Service", "Install", "program:shop-worker"}
    started = "/srv/shop/venv/bin/flask --app shop async-hooks worker"
    assert found["Service"]["ExecStart"] == started
    assert found["program:shop-worker"]["command"].startswith(started)
