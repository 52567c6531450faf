"""The movement on Flask's own server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import requests

from tests.support.servers import answers, free_port
from tests.support.site import SHOP, running

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("option", ["--with-threads", "--without-threads", "--debug"])
def test_flask_run_delivers(tmp_path: Path, option: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "flask", "--app", SHOP, "run", option]
    with running(
        tmp_path,
        [*command, "--port", str(port)],
        lambda: answers(("127.0.0.1", port)),
        SITE_ASYNC_HOOKS_FALLBACK="null",
    ) as site:
        for number in range(10):
            assert requests.get(f"http://127.0.0.1:{port}/visit/{number}", timeout=30).ok
        done = site.wait_for("done", 10)
        assert sorted(line["done"] for line in done) == list(range(10))
        assert site.notes("failed") == []
        assert site.log.count("POST /async-hooks/run") >= 9


def test_a_command_delivers_before_it_ends(tmp_path: Path) -> None:
    code = (
        "import blinker\n"
        "from tests.support.shop import app\n"
        "with app.app_context():\n"
        "    blinker.signal('visited').send(app, number=7)\n"
    )
    command = [sys.executable, "-c", code]
    with running(tmp_path, command, lambda: True) as site:
        assert site.process.wait(30) == 0
        assert [line["done"] for line in site.notes("done")] == [7]
