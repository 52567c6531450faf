"""Strangers hammer the endpoint; visitors are served, and what they launch runs.

How long visitors wait meanwhile is measured by hammer.py, not judged here.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.attacks.attacking import BOUND, exchange, request, serving
from tests.attacks.hammer import ATTACKS, dawdle
from tests.support.site import Site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

VISITS = 40


def all_are_served(site: Site, port: int) -> None:
    for number in range(VISITS):
        line = f"GET /visit/{number} HTTP/1.1"
        assert exchange(port, request(b"", line=line, length=False)).status == 200
    site.wait_for("done", VISITS)
    assert sorted(note["done"] for note in site.notes("done")) == list(range(VISITS))
    assert site.notes("failed") == []


def test_while_strangers_hammer(tmp_path: Path) -> None:
    answers: Counter[tuple[str, int]] = Counter()
    over = threading.Event()

    def hammer(name: str, port: int) -> None:
        sent = ATTACKS[name]()
        while not over.is_set():
            answer = exchange(port, sent)
            assert not answer.has_verdict
            answers[name, answer.status] += 1

    with serving(tmp_path) as (site, port, _):
        names = sorted(ATTACKS.keys() - {"replayed"})
        threads = [threading.Thread(target=hammer, args=(name, port)) for name in names]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(answers) == len(names), "a first answer to each")
            all_are_served(site, port)
        finally:
            over.set()
            for thread in threads:
                thread.join(BOUND)
        assert dict(answers.keys()) == {
            "missing page": 404,
            "no token": 401,
            "nonsense": 401,
            "forged": 401,
            "GET": 405,
            "too large": 413,
            "100 kB": 401,
        }
        assert "Traceback" not in site.log


def test_while_strangers_dawdle(tmp_path: Path) -> None:
    """Each slow stranger holds a thread of the server, as at any route that reads a body."""
    with serving(tmp_path) as (site, port, _):
        connections = dawdle(port, 6)
        try:
            all_are_served(site, port)
        finally:
            for connection in connections:
                connection.close()
