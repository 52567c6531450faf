"""Flask-Sock: a view that talks by a WebSocket launches as any other does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ecosystem.serving import served
from tests.support.servers import answers, free_port
from tests.support.services import require_module
from tests.support.site import Site, running

require_module("flask_sock")

from simple_websocket import Client

pytestmark = pytest.mark.slow

APP = "tests.ecosystem.sockets:app"


@contextmanager
def flask_run(folder: Path, app: str, **environ: str) -> Iterator[tuple[Site, int]]:
    port = free_port()
    command = [sys.executable, "-m", "flask", "--app", app, "run", "--port", str(port)]
    with running(folder, command, partial(answers, ("127.0.0.1", port)), **environ) as site:
        yield site, port


@pytest.mark.parametrize("outbox", [False, True], ids=["in memory", "outbox"])
@pytest.mark.parametrize("serve", [served, flask_run])
def test_what_a_websocket_launches_runs_once(tmp_path: Path, serve: Any, outbox: bool) -> None:
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    environ = {"SITE_ASYNC_HOOKS_OUTBOX": url} if outbox else {}
    with serve(tmp_path, APP, **environ) as (site, port):
        socket = Client(f"ws://127.0.0.1:{port}/orders")
        launched: list[str] = []
        for number in range(5):
            socket.send(str(number))
            launched += json.loads(socket.receive(timeout=20) or "null")
        socket.close()
        site.wait_for("filled", 15)
        assert sorted(line["id"] for line in site.notes("filled")) == sorted(launched)
        assert site.notes("failed") == []
