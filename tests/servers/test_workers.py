"""``flask async-hooks worker``: real processes, real signals, real databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from async_hooks.state import state_of
from tests.servers import workshop
from tests.support.databases import KINDS, fresh_database
from tests.support.servers import ROOT, free_port, is_alive
from tests.support.site import Site, gunicorn
from tests.support.waiting import BOUND, wait_until

pytestmark = pytest.mark.slow

FLASK = [sys.executable, "-m", "flask", "async-hooks"]


class Shop:
    """A database, an app in this process that adds to it, and the workers of that app."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.hold = folder / "hold"
        self.url = url
        self.environ = {
            "FLASK_APP": "tests.servers.workshop:create_app",
            "SITE_ASYNC_HOOKS_OUTBOX": url,
            "SITE_ASYNC_HOOKS_RELAY": "false",
        }
        self.app: Flask = workshop.make_app(
            str(folder), ASYNC_HOOKS_OUTBOX=url, ASYNC_HOOKS_RELAY=False
        )
        state: Any = state_of(self.app)
        self.outbox, self.store = state.outbox, state.store
        self.workers: list[Site] = []

    def add(self, number: Any = 0, do: str = "", **options: Any) -> str:
        with self.app.app_context():
            return workshop.Work.dispatch({"number": number, "do": do}, **options)

    def worker(self, *options: str, cwd: Path = ROOT, **environ: str) -> Site:
        """Start a worker, in a process group of its own."""
        facts = {"FOLDER": str(self.folder), "PYTHONUNBUFFERED": "", **self.environ, **environ}
        self.workers.append(Site(self.folder, [*FLASK, "worker", *options], facts, cwd=cwd))
        return self.workers[-1]

    def work(self, *options: str, **environ: str) -> int:
        """Return what a worker exits with that ends by itself."""
        return self.worker(*options, cwd=ROOT, **environ).process.wait(BOUND)

    def states(self) -> dict[Any, str]:
        return {one.data["number"]: str(one.state) for one in self.outbox.find(limit=None)}

    def get(self, delivery_id: str) -> Any:
        return self.outbox.get(delivery_id)

    def close(self) -> None:
        self.hold.unlink(missing_ok=True)
        for worker in self.workers:
            children = _children(worker.process.pid)
            worker.kill()
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.store.database.engine.dispose()


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(f"sqlite:///{tmp_path / 'outbox.db'}", tmp_path)
    yield shop
    shop.close()


@pytest.fixture(params=KINDS)
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """The shop on each kind of database, with tables."""
    with fresh_database(request.param, tmp_path) as url, ExitStack() as stack:
        shop = Shop(url, tmp_path)
        stack.callback(shop.close)
        shop.outbox.create()
        yield shop


# -- what is carried, and in which order


def test_one_at_a_time_by_queue_then_priority_then_age(anywhere: Shop) -> None:
    for number in range(3):
        anywhere.add(f"b{number}", queue="b")
        anywhere.add(f"a{number}", queue="a", priority=10 - number)
        anywhere.add(f"c{number}", queue="c")
    assert anywhere.work("--drain", "--queue", "b", "--queue", "a") == 0
    site = anywhere.workers[0]
    order = [line.get("begun", line.get("number")) for line in site.ledger if "id" in line]
    assert order == [name for one in ("b0", "b1", "b2", "a2", "a1", "a0") for name in (one, one)]
    assert anywhere.outbox.counts()["available"] == 3


@pytest.mark.parametrize("anywhere", ["sqlite", "postgresql"], indirect=True)
def test_eight_workers_on_one_table_run_each_delivery_once(anywhere: Shop) -> None:
    ids = {anywhere.add(number) for number in range(160)}
    workers = [anywhere.worker("--drain", "--concurrency", "2") for _ in range(8)]
    assert [worker.process.wait(BOUND) for worker in workers] == [0] * 8
    ran = [line["id"] for line in workers[0].notes("number")]
    assert (len(ran), set(ran)) == (160, ids)
    assert anywhere.outbox.counts()["completed"] == 160


@pytest.mark.parametrize("anywhere", ["sqlite", "mariadb"], indirect=True)
def test_beside_a_web_server_that_relays_each_runs_once(anywhere: Shop, tmp_path: Path) -> None:
    worker = anywhere.worker()
    port = free_port()
    app = "tests.servers.workshop:create_app()"
    command = gunicorn("-w", "1", "-k", "gthread", "-b", f"127.0.0.1:{port}", app=app)
    environ = {**anywhere.environ, "FOLDER": str(tmp_path), "SITE_ASYNC_HOOKS_RELAY": "true"}
    web = Site(tmp_path, command, environ)
    anywhere.workers.append(web)

    def has_served() -> bool:
        asked = ["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}/"]
        return subprocess.run(asked).returncode == 0

    wait_until(has_served, "the first request")
    wait_until(lambda: len(anywhere.outbox.relays()) == 2, "two relays")
    ids = {anywhere.add(number) for number in range(60)}
    wait_until(lambda: anywhere.outbox.counts()["completed"] == 60, "60 completions")
    ran = [line["id"] for line in worker.notes("number")]
    assert (len(ran), set(ran)) == (60, ids)
    web.stop()
    worker.stop()
    assert worker.process.returncode == 0


def test_what_a_run_launches_waits_for_its_turn_and_its_queue(shop: Shop) -> None:
    for number, do in enumerate(["launch", "", "", "", "", ""]):
        shop.add(number, do)
    assert shop.work("--drain", "--queue", "default") == 0
    begun = [line["begun"] for line in shop.workers[0].notes("begun")]
    assert sorted(map(str, begun)) == ["0", "1", "2", "3", "4", "5", "urgent"]
    assert shop.states()["elsewhere"] == "available"


# -- --once and what is wrong from the start


def test_once_runs_one_and_tells_by_its_exit_code(shop: Shop) -> None:
    assert shop.work("--once") == 0
    shop.add(1)
    shop.add(2)
    assert shop.work("--once") == 0
    assert shop.states() == {1: "completed", 2: "available"}
    failed = shop.add(3, "fail", priority=1)
    assert shop.work("--once", "--name", "cron") == 1
    assert shop.get(failed).attempts == 1
    crashed = shop.add(4, "kill", priority=1)
    assert shop.work("--once") == 1
    assert shop.get(crashed).crashes == 0  # Whoever relays next sees it.
    site = shop.workers[0]
    signs = [line for line in site.ledger if line.get("started", line.get("stopped")) == "cron"]
    assert [("started" in line, line["queues"], line["app"]) for line in signs] == [
        (True, None, "workshop"),
        (False, None, "workshop"),
    ]


def test_without_an_outbox_it_ends_with_2_and_names_the_key(shop: Shop) -> None:
    del shop.environ["SITE_ASYNC_HOOKS_OUTBOX"]
    assert shop.work() == 2
    assert "needs an outbox. Set 'ASYNC_HOOKS_OUTBOX'" in shop.workers[0].log
    assert "Traceback" not in shop.workers[0].log


def test_an_app_that_can_not_be_loaded_ends_it_with_2(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "workshop.py").write_text("raise RuntimeError('half a deploy')")
    worker = shop.worker(cwd=tmp_path, FLASK_APP="workshop:create_app")
    assert worker.process.wait(BOUND) == 2
    assert "half a deploy" in worker.log


@pytest.mark.parametrize("option", ["--once", "--drain"])
def test_without_a_database_what_ends_by_itself_ends_with_a_sentence(
    shop: Shop, option: str
) -> None:
    shop.environ["SITE_ASYNC_HOOKS_OUTBOX"] = "postgresql://postgres:secret@127.0.0.1:1/shop"
    assert shop.work(option) == 1
    assert "can't be used: " in shop.workers[0].log
    assert "Traceback" not in shop.workers[0].log
    assert "secret" not in shop.workers[0].log


def test_without_a_database_it_waits_and_says_so(shop: Shop) -> None:
    shop.environ["SITE_ASYNC_HOOKS_OUTBOX"] = "postgresql://postgres@127.0.0.1:1/shop"
    worker = shop.worker()
    wait_until(lambda: worker.log.count("The relay waits") >= 2, "two tries")
    worker.stop()
    assert worker.process.returncode == 0
    assert "Traceback" not in worker.log


def test_without_tables_it_waits_for_them(tmp_path: Path) -> None:
    with fresh_database("postgresql", tmp_path) as url:
        shop = Shop(url, tmp_path)
        worker = shop.worker()
        wait_until(lambda: "Run: flask async-hooks init-db" in worker.log, "the sentence")
        shop.outbox.create()
        shop.add(1)
        worker.wait_for("number", 1)
        worker.stop()
        shop.close()


# -- being told to end


@pytest.mark.parametrize("how", ["TERM", "Ctrl-C", "TERM to all", "HUP to all"])
def test_told_to_end_it_finishes_what_runs_and_gives_back_the_rest(shop: Shop, how: str) -> None:
    shop.hold.touch()
    shop.add(1, "outlast")
    rest = [shop.add(number) for number in (2, 3, 4)]
    worker = shop.worker()
    worker.wait_for("begun", 1)
    number = {"Ctrl-C": signal.SIGINT, "HUP to all": signal.SIGHUP}.get(how, signal.SIGTERM)
    if how == "TERM":
        worker.process.send_signal(number)
    elif how == "TERM to all":  # As systemd does; what a receiver started is for its unit to spare.
        for pid in (*_children(worker.process.pid), worker.process.pid):
            os.kill(pid, number)
    else:
        os.killpg(worker.process.pid, number)
    assert worker.process.poll() is None
    shop.hold.unlink()
    assert worker.process.wait(BOUND) == 0
    assert shop.states() == {1: "completed", 2: "available", 3: "available", 4: "available"}
    assert [shop.get(one).attempts for one in rest] == [0, 0, 0]
    assert shop.outbox.relays() == []
    assert len(worker.notes("stopped")) == 1


def test_what_outlasts_the_grace_is_left_to_the_others(shop: Shop) -> None:
    shop.hold.touch()
    slow = shop.add(1, "hold")
    worker = shop.worker(SITE_ASYNC_HOOKS_GRACE="0.2")
    worker.wait_for("begun", 1)
    worker.stop()
    assert worker.process.returncode == 0
    shop.hold.unlink()
    assert shop.work("--drain") == 0
    assert (shop.get(slow).state, shop.get(slow).crashes) == ("completed", 1)


def test_a_second_signal_ends_it_at_once(shop: Shop) -> None:
    shop.hold.touch()
    shop.add(1, "hold")
    worker = shop.worker(SITE_ASYNC_HOOKS_GRACE="600")
    worker.wait_for("begun", 1)
    [child] = _children(worker.process.pid)
    worker.process.send_signal(signal.SIGTERM)
    # A signal that is still pending when it is sent again counts once.
    wait_until(lambda: _lines(worker.process.pid, "ShdPnd") == 0, "its arrival")
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(BOUND) == 130
    assert not is_alive(child)


def _lines(pid: int, key: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(key)), 16)


def test_quick_ends_leave_nobody_behind(shop: Shop) -> None:
    for number in range(6):
        worker = shop.worker("--fresh" if number % 2 else "--max-deliveries=1")
        children = wait_until(partial(_children, worker.process.pid), "a child")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(BOUND) == 0, worker.log
        assert not any(map(is_alive, children))
        assert worker.log == ""


# -- deaths


def test_a_receiver_that_takes_its_process_with_it_harms_no_other(shop: Shop) -> None:
    shop.environ["SITE_ASYNC_HOOKS_MAX_CRASHES"] = "2"
    bad = [shop.add(how, how) for how in ("crash", "leave")]
    fine = [shop.add(number) for number in range(5)]
    assert shop.work("--drain") == 0
    found = [shop.get(one) for one in bad]
    assert [(one.state, one.crashes) for one in found] == [("discarded", 2)] * 2
    assert ["died" in one.error for one in found] == [True] * 2
    found = [shop.get(one) for one in fine]
    assert [(one.state, one.attempts, one.crashes) for one in found] == [("completed", 1, 0)] * 5
    log = shop.workers[0].log
    assert log.count("ended by signal 11.") == log.count("ended with code 0.") == 2, log


@pytest.mark.parametrize("options", [["--drain"], ["--drain", "--fresh"]], ids=["forked", "fresh"])
def test_an_exit_code_of_a_receivers_own_is_a_crash(shop: Shop, options: list[str]) -> None:
    shop.environ["SITE_ASYNC_HOOKS_MAX_CRASHES"] = "1"
    endings = {"done": 80, "failed": 81, "misconfigured": 82, "used up": 83}
    bad = [shop.add(how, f"leave as if {how}") for how in endings]
    fine = shop.add("fine", "fork")
    shop.add("next", "inherit")
    assert shop.work(*options) == 0
    assert [str(shop.get(one).state) for one in bad] == ["discarded"] * 4
    assert shop.states()["next"] == "completed"
    assert (shop.get(fine).state, shop.get(fine).crashes) == ("completed", 0)
    [worker] = shop.workers
    for code in endings.values():
        assert worker.log.count(f"its process ended with code {code}.") == 1
    assert worker.notes("inherited")[0]["inherited"] == 0
    told = [(line["exit_code"], line["signal"], line["app"]) for line in worker.notes("died")]
    assert told == [(code, None, "workshop") for code in endings.values()]


@pytest.mark.parametrize("options", [[], ["--once"], ["--fresh"]], ids=["forked", "once", "fresh"])
def test_a_death_is_told_by_the_process_that_follows(shop: Shop, options: list[str]) -> None:
    shop.add(1, "kill")
    worker = shop.worker("--name", "w1", *options, SITE_ASYNC_HOOKS_MAX_CRASHES="1")
    [line] = worker.wait_for("died", 1)
    assert (line["died"], line["exit_code"], line["signal"]) == ("w1", None, 9)
    assert line["pid"] != worker.notes("begun")[0]["pid"]
    if options == ["--once"]:
        assert worker.process.wait(BOUND) == 1
    else:
        worker.wait_for("started", 2)
        worker.stop()
    assert len(worker.notes("died")) == 1


@pytest.mark.parametrize("code", ["done", "failed", "misconfigured", "used up"])
def test_an_exit_code_of_its_receivers_own_is_the_failure_of_once(shop: Shop, code: str) -> None:
    shop.add(1, f"leave as if {code}")
    assert shop.work("--once") == 1


def test_a_receiver_that_tells_its_own_process_to_end_ends_no_worker(shop: Shop) -> None:
    for number in range(3):
        shop.add(number, "term")
    assert shop.work("--drain") == 0
    assert shop.states() == dict.fromkeys(range(3), "completed")


@pytest.mark.parametrize("anywhere", ["postgresql", "mariadb"], indirect=True)
def test_a_crash_is_counted_on_every_database(anywhere: Shop) -> None:
    bad = anywhere.add("bad", "kill")
    fine = anywhere.add("fine")
    assert anywhere.work("--drain", SITE_ASYNC_HOOKS_MAX_CRASHES="1") == 0
    assert anywhere.get(bad).state == "discarded"
    assert (anywhere.get(fine).state, anywhere.get(fine).crashes) == ("completed", 0)


def test_whatever_a_receiver_raises_is_its_own_failure(shop: Shop) -> None:
    bad = [shop.add(how, how) for how in ("exit", "interrupt", "base", "fail")]
    for number in range(6):
        shop.add(number)
    worker = shop.worker("--drain")
    assert worker.process.wait(BOUND) == 0
    found = [shop.get(one) for one in bad]
    assert [(one.state, one.attempts, one.crashes) for one in found] == [("available", 1, 0)] * 4
    said = ["SystemExit: 3", "KeyboardInterrupt: ", "BaseException: no less", "ValueError: no"]
    assert [one.error for one in found] == said
    assert shop.outbox.counts()["completed"] == 6
    assert len(worker.notes("loaded")) == 1  # One process did it all.


@pytest.mark.parametrize("options", [[], ["--fresh"]], ids=["forked", "fresh"])
def test_the_child_of_a_parent_that_was_killed_ends_in_order(
    shop: Shop, options: list[str]
) -> None:
    shop.hold.touch()
    shop.add(1, "outlast")
    shop.add(2)
    worker = shop.worker(*options)
    worker.wait_for("begun", 1)
    [child] = _children(worker.process.pid)
    worker.process.kill()
    worker.process.wait(BOUND)
    assert is_alive(child)
    shop.hold.unlink()
    wait_until(lambda: not is_alive(child), "the child's end")
    assert shop.states() == {1: "completed", 2: "available"}
    assert shop.outbox.relays() == []


def test_a_run_that_never_ends_keeps_its_thread_and_not_the_worker(shop: Shop) -> None:
    shop.hold.touch()
    endless = shop.add(1, "hold")
    worker = shop.worker(SITE_ASYNC_HOOKS_TIMEOUT="0.1", SITE_ASYNC_HOOKS_GRACE="0")
    worker.wait_for("begun", 1)
    for number in range(2, 5):
        shop.add(number)
    worker.wait_for("number", 3)
    found = shop.get(endless)
    assert (found.state, found.attempts) == ("executing", 1)
    assert len({note["pid"] for note in worker.notes("begun")}) == 1
    worker.stop()


# -- its processes


def test_the_parent_has_not_loaded_the_app(shop: Shop) -> None:
    assert shop.work("--drain") == 0
    [load] = shop.workers[0].notes("loaded")
    assert load["parent"] == shop.workers[0].process.pid


def test_fresh_runs_each_delivery_by_the_code_of_its_moment(shop: Shop, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    source = Path(workshop.__file__).read_text()
    (code / "workshop.py").write_text(source)
    shop.add(1)
    shop.add(2)
    environ = {"FLASK_APP": "workshop:create_app", "PYTHONDONTWRITEBYTECODE": "1"}
    environ["SITE_ASYNC_HOOKS_LEASE"] = "1"
    worker = shop.worker("--fresh", "--name", "fresh", cwd=code, **environ)
    worker.wait_for("number", 2)
    worker.wait_for("started", 3)
    first = wait_until(lambda: [relay.seen_at for relay in shop.outbox.relays()], "a beat")
    wait_until(
        lambda: [relay.seen_at for relay in shop.outbox.relays()] != first,
        "the third's second beat: it waits, with the code of now",
    )
    (code / "workshop.py").write_text(source.replace('number=data["number"]', 'number="new"'))
    shop.add(3)
    done = worker.wait_for("number", 3)
    assert [line["number"] for line in done] == [1, 2, "new"]
    assert len({line["pid"] for line in done}) == 3
    wait_until(lambda: shop.outbox.counts()["completed"] == 3, "the completion")
    assert {one.attempts for one in shop.outbox.find()} == {1}
    worker.stop()
    assert worker.process.returncode == 0
    assert {line["started"] for line in worker.notes("started")} == {"fresh"}


def test_a_new_process_follows_after_so_many(shop: Shop) -> None:
    for number in range(5):
        shop.add(number)
    assert shop.work("--drain", "--max-deliveries", "2") == 0
    pids = [line["pid"] for line in shop.workers[0].notes("number")]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 1]


@pytest.mark.parametrize("options", [[], ["--fresh"]], ids=["forked", "fresh"])
def test_when_its_time_is_over_it_ends_in_order(shop: Shop, options: list[str]) -> None:
    worker = shop.worker("--max-time", "5", "--max-deliveries", "1", *options)
    shop.add(1)
    shop.add(2, "outlast")
    shop.add(3)
    assert worker.process.wait(BOUND) == 0
    begun, done = ([n["id"] for n in worker.notes(key)] for key in ("begun", "number"))
    assert begun == done  # What ran may finish.
    assert len(done) < 3
    assert set(shop.states().values()) <= {"completed", "available"}
    assert shop.outbox.relays() == []
    assert worker.notes("died") == []


def test_a_new_process_follows_when_one_has_grown_too_big(shop: Shop) -> None:
    worker = shop.worker("--max-rss", "200")
    for number in range(12):
        shop.add(number, "leak")
    wait_until(lambda: shop.outbox.counts()["completed"] == 12, "their completion")
    last = shop.workers[0].notes("number")[-1]["pid"]
    wait_until(lambda: not is_alive(last), "the end of who leaked")
    shop.add(12)
    worker.wait_for("number", 13)
    worker.stop()
    assert {one.attempts for one in shop.outbox.find(limit=None)} == {1}


def test_an_app_that_is_too_big_from_the_start_is_an_error(shop: Shop) -> None:
    assert shop.work("--max-rss", "10") == 2
    assert "the app takes" in shop.workers[0].log


def test_what_is_printed_is_seen_at_once(shop: Shop) -> None:
    shop.hold.touch()
    shop.add(1, "print")
    worker = shop.worker()
    wait_until(lambda: "printed\n" in worker.log, "the line")
    shop.hold.unlink()
    worker.stop()
    assert worker.log.count("printed") == 1


def test_status_shows_its_name_queues_and_what_it_runs(shop: Shop) -> None:
    shop.hold.touch()
    running = shop.add(1, "hold", queue="mails")
    shop.add(2, queue="mails")
    worker = shop.worker("--name", "post office", "--queue", "mails", "--queue", "other")
    worker.wait_for("begun", 1)
    environ = {**os.environ, **shop.environ, "FOLDER": str(shop.folder)}
    environ["LEDGER"] = str(shop.folder / "ledger")
    command = [*FLASK, "status", "--json"]
    said = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, check=True)
    [relay] = json.loads(said.stdout)["relays"]
    assert relay["name"] == "post office"
    assert relay["queues"] == ["mails", "other"]
    assert relay["deliveries"] == [running]
    assert relay["is_alive"]
    assert [relay["pid"]] == _children(worker.process.pid)
    shop.hold.unlink()
    worker.stop()
