"""Releases side by side on one outbox, under load: nothing is lost, and no attempt is burned."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import fresh_database
from tests.support.servers import ROOT, answers, free_port
from tests.support.site import Site, gunicorn, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

numbers = itertools.count(1)


class Stage:
    """Where releases are served, all on one outbox."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environ = {"OUTBOX": url, "FOLDER": str(folder), "KEY": "k" * 40}

    def serve(self, release: str, **environ: str) -> AbstractContextManager[Server]:
        return _served(self, release, environ)

    def flask(self, release: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        flask = [sys.executable, "-m", "flask", "--app", "tests.servers.release"]
        return subprocess.run(
            [*flask, "async-hooks", *arguments],
            cwd=ROOT,
            env={**self.environ, "RELEASE": release, "LEDGER": str(self.folder / "ledger")},
            capture_output=True,
            text=True,
            check=False,
        )


class Server:
    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        self.port = port

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    def pay(self) -> int:
        number = next(numbers)
        assert self.get(f"/pay/{number}") == "paid"
        return number

    def look(self) -> dict[str, Any]:
        seen: dict[str, Any] = json.loads(self.get("/"))
        return seen

    def quiet(self) -> bool:
        counts = self.look()["counts"]
        return bool(counts["available"] + counts["executing"] == 0)


@contextmanager
def _served(stage: Stage, release: str, environ: dict[str, str]) -> Iterator[Server]:
    port = free_port()
    bind = ("--bind", f"127.0.0.1:{port}")
    command = gunicorn(
        "-w", "2", "-k", "gthread", "--threads", "8", *bind, app="tests.servers.release:app"
    )
    environ = {**stage.environ, "RELEASE": release, **environ}

    def is_up() -> bool:
        return answers(("127.0.0.1", port))

    with running(stage.folder, command, is_up, **environ) as site:
        yield Server(site, port)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with fresh_database(request.param, tmp_path) as url:
        stage = Stage(tmp_path, url)
        assert stage.flask("first", "init-db").returncode == 0
        yield stage


def pay_in_turn(*servers: Server) -> list[int]:
    """Launch some hundred orders from as many threads as there are servers."""
    paid: list[int] = []

    def pay(server: Server) -> None:
        paid.extend(server.pay() for _ in range(60))

    threads = [threading.Thread(target=pay, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paid) == 60 * len(servers)
    return paid


def test_a_rename_under_load_and_its_rollback_lose_and_burn_nothing(stage: Stage) -> None:
    with stage.serve("first") as first:
        first.pay()
        with stage.serve("renamed") as renamed:
            paid = pay_in_turn(first, renamed)
            first.site.stop()
            paid += pay_in_turn(renamed)
            # What only the first release knows waits for it, unbegun.
            wait_until(lambda: set(renamed.look()["waiting"]) <= {"orders.Paid stock"}, "the rest")
            assert renamed.look()["begun"] in ([], [0])
            with stage.serve("first") as rolled_back:
                rolled_back.pay()
                wait_until(renamed.quiet, "the end of all")
                seen = renamed.look()
    assert (seen["attempts"], seen["crashes"]) == ([1], 0)
    assert seen["counts"]["discarded"] == 0
    ran = [json.loads(line) for line in (stage.folder / "ledger").read_text().splitlines()]
    told = [(line["ran"], line["number"]) for line in ran]
    assert len(told) == len(set(told))
    mailed = {number for receiver, number in told if receiver == "mail"}
    assert set(paid) <= mailed
    assert {line["attempt"] for line in ran} == {1}


def test_a_rename_without_an_alias_is_stopped_by_check_and_else_waits(stage: Stage) -> None:
    with stage.serve("first", RELAY="no") as first:
        for _ in range(5):
            first.pay()
    check = stage.flask("nameless", "check")
    assert check.returncode == 1
    assert "orders.Paid" in check.stdout + check.stderr
    with stage.serve("nameless") as nameless:
        nameless.pay()
        wait_until(lambda: nameless.look()["waiting"] == ["orders.Paid None"], "the rest")
        assert (nameless.look()["counts"]["available"], nameless.look()["begun"]) == (5, [0])
    assert stage.flask("renamed", "check").returncode == 0
    with stage.serve("renamed") as renamed:
        renamed.get("/")
        wait_until(renamed.quiet, "the end of all")
        assert renamed.look()["attempts"] == [1]


def test_an_app_is_renamed_under_load_and_loses_and_repeats_nothing(stage: Stage) -> None:
    names = {"before": "shop", "after": "store shop"}
    with (
        stage.serve("first", AUDIENCE=names["before"]) as before,
        stage.serve("first", AUDIENCE=names["after"]) as after,
    ):
        paid = pay_in_turn(before, after)
        before.site.stop()
        paid += pay_in_turn(after)
        wait_until(after.quiet, "the end of all")
        seen = after.look()
    assert (seen["attempts"], seen["crashes"], seen["counts"]["discarded"]) == ([1], 0, 0)
    assert_ran_once(stage, paid)


def test_what_a_killed_release_of_a_new_name_held_goes_back_to_the_former(stage: Stage) -> None:
    with stage.serve("first", AUDIENCE="shop", RELAY="no") as before:
        paid = [before.pay() for _ in range(20)]
        with stage.serve("first", AUDIENCE="store shop", SECONDS="30") as after:
            after.get("/")
            wait_until(lambda: before.look()["begun"] != [0], "a run in the new release")
            after.site.kill()
    with stage.serve("first", AUDIENCE="shop") as back:
        back.get("/")
        wait_until(back.quiet, "the end of all")
        seen = back.look()
    assert seen["counts"]["discarded"] == 0
    assert_ran_once(stage, paid)


def assert_ran_once(stage: Stage, paid: list[int]) -> None:
    ran = [json.loads(line) for line in (stage.folder / "ledger").read_text().splitlines()]
    told = [(line["ran"], line["number"]) for line in ran]
    assert sorted(told) == sorted((name, number) for name in ("mail", "stock") for number in paid)


def test_keys_rotate_under_load(stage: Stage) -> None:
    rotated = {"KEY": "n" * 40, "FORMER_KEYS": "k" * 40}
    with stage.serve("first") as before, stage.serve("first", **rotated) as after:
        pay_in_turn(before, after)
        before.site.stop()
        pay_in_turn(after)
        wait_until(after.quiet, "the end of all")
        seen = after.look()
    assert (seen["attempts"], seen["crashes"], seen["counts"]["discarded"]) == ([1], 0, 0)
