"""One failing delivery slows only itself: healthy ones go on beside any number of others."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import pytest
import requests

from tests.support.servers import answers, free_port
from tests.support.site import Site, gunicorn, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

APP = "tests.servers.poisoned_shop:create_app()"
FLASK = [sys.executable, "-m", "flask", "--app", APP]

POISONS = ("refused", "restore", "text", "spoilt", "orphan")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Site, str]]:
    port = free_port()
    command = gunicorn(
        *("-w", "2", "-k", "gthread", "--threads", "8"), "-b", f"127.0.0.1:{port}", app=APP
    )
    is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
    environ = {"FOLDER": str(tmp_path), "SITE_ASYNC_HOOKS_OUTBOX": "sqlite:///outbox.db"}
    with ExitStack() as stack:
        server = stack.enter_context(running(tmp_path, command, is_up, **environ))
        yield server, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("poison", POISONS)
def test_fifty_poisons_hold_up_nobody_else(site: tuple[Site, str], poison: str) -> None:
    server, url = site
    usual = _pickups(server, url, range(30))
    for number in range(1000, 1050):
        requests.get(f"{url}/launch/{poison}/{number}", timeout=30).raise_for_status()
    if poison in ("spoilt", "orphan"):
        _spoil(server.folder / "outbox.db", poison)
    pickups = _pickups(server, url, range(100, 130))
    print(json.dumps({"poison": poison, "usual": median(usual), "beside": median(pickups)}))
    assert max(pickups) < 5  # Half a minute it was, with a breaker for all.


def _pickups(server: Site, url: str, numbers: range) -> list[float]:
    """Return the seconds from each launch to its run."""
    began = {}
    for number in numbers:
        began[number] = time.time()
        requests.get(f"{url}/launch/healthy/{number}", timeout=30).raise_for_status()
        time.sleep(0.05)
    is_over = lambda: {n["ran"] for n in server.notes("ran")} >= set(numbers)  # noqa: E731
    wait_until(is_over, "the healthy runs")
    return [n["at"] - began[n["ran"]] for n in server.notes("ran") if n["ran"] in began]


def _spoil(path: Path, how: str) -> None:
    change = "body = 'no JSON'" if how == "spoilt" else "parent_id = 'gone'"
    with closing(sqlite3.connect(path, timeout=10)) as database, database:
        database.execute(f"UPDATE async_hooks_deliveries SET {change} WHERE state = 'available'")
