"""Two apps on the same tables, with tasks of the same name: a row belongs to one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.support.databases import KINDS, fresh_database
from tests.support.servers import ROOT, answers, free_port
from tests.support.site import Site, gunicorn, running

pytestmark = pytest.mark.slow

APP = "tests.servers.slow_shop:create_app()"


class Neighbour:
    """One of the apps, by its audience: a server of its own, and its commands."""

    def __init__(self, audience: str, key: str, url: str, folder: Path, stack: ExitStack) -> None:
        folder.mkdir()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._environ = {
            "FOLDER": str(folder),
            "SITE_ASYNC_HOOKS_OUTBOX": url,
            "SITE_ASYNC_HOOKS_AUDIENCE": audience,
            "SITE_SECRET_KEY": key,
        }
        self._shared = {"LEDGER": str(folder / "ledger"), "HOLD": str(folder / "hold")}
        self.ask("init-db")
        command = gunicorn(*("-w", "2", "-k", "gthread", "-b", f"127.0.0.1:{port}"), app=APP)
        is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
        self.site: Site = stack.enter_context(running(folder, command, is_up, **self._environ))
        for _ in range(4):  # Both workers relay from their first visitor on.
            requests.get(self.url, timeout=30)

    def export(self, number: int) -> str:
        answer = requests.get(f"{self.url}/export/{number}", timeout=30)
        answer.raise_for_status()
        return answer.text

    def ask(self, *command: str) -> str:
        line = [sys.executable, "-m", "flask", "--app", APP, "async-hooks", *command]
        environ = {**os.environ, **self._shared, **self._environ}
        done = subprocess.run(
            line, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def exports(self) -> list[int]:
        return sorted(line["mail"] for line in self.site.notes("mail"))


@pytest.fixture(params=KINDS)
def neighbours(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Neighbour, Neighbour]]:
    with fresh_database(request.param, tmp_path) as url, ExitStack() as stack:
        shop = Neighbour(
            "shop", "the shop's key, thirty-two bytes or so", url, tmp_path / "a", stack
        )
        blog = Neighbour(
            "blog", "the blog's key, thirty-two bytes or so", url, tmp_path / "b", stack
        )
        yield shop, blog


def test_neighbours_on_the_same_tables_keep_apart(
    neighbours: tuple[Neighbour, Neighbour],
) -> None:
    shop, blog = neighbours
    launched = [shop.export(number) for number in range(100, 150)]
    shop.site.wait_for("mail", 50)
    assert (shop.exports(), blog.exports()) == (list(range(100, 150)), [])

    # Neither commands nor keys of one reach the other's.
    assert "is paused" in blog.ask("pause", "default")
    assert "never existed" in blog.ask("cancel", launched[0])
    assert "There is nothing" in blog.ask("retry", "--state", "completed", "--yes")
    shop.export(200)
    shop.site.wait_for("mail", 51)
    mine, its = shop.export(300), blog.export(300)
    assert mine != its
    shop.site.wait_for("mail", 52)
    assert blog.exports() == []
    assert "1 available" in blog.ask("status")
    assert "0 available" in shop.ask("status")
    for each in (shop, blog):
        assert "all known" in each.ask("check")
        assert each.ask("health").startswith("OK")
    blog.ask("resume", "default")
    blog.site.wait_for("mail", 1)
