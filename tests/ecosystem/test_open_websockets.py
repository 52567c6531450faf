"""flask-sock: the view of a WebSocket runs as long as that lives, and holds no launch back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import answers, free_port
from tests.support.site import Site, gunicorn, running

pytest.importorskip("flask_sock", reason="flask-sock is not installed: pip install flask-sock")
pytestmark = pytest.mark.slow

APP = "tests.ecosystem.visiting_socket:app"
WORKERS = [("-k", "gthread", "--threads", "8"), ("-k", "gevent")]


@contextmanager
def connected(folder: Path, *options: str, **environ: str) -> Iterator[tuple[Site, Any]]:
    """Give a server, and a WebSocket to it that is open until the block ends."""
    from simple_websocket import Client

    port = free_port()
    command = gunicorn(*options, "-b", f"127.0.0.1:{port}", app=APP)
    with running(folder, command, lambda: answers(("127.0.0.1", port)), **environ) as site:
        client = Client(f"ws://127.0.0.1:{port}/socket")
        yield site, client


@pytest.mark.parametrize("options", WORKERS, ids=" ".join)
def test_what_a_message_launches_does_not_wait_for_the_end_of_the_websocket(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with connected(tmp_path, *options) as (site, client):
        for number in (1, 2):
            client.send(str(number))
            assert client.receive(timeout=30) == "launched"
            site.wait_for("done", number)
        assert {line["method"] for line in site.notes("method")} == {"POST"}
        assert client.connected
        client.close()


@pytest.mark.parametrize("options", WORKERS, ids=" ".join)
def test_a_stop_loses_no_launch_of_an_open_websocket(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    environ = {"SITE_ASYNC_HOOKS_TRANSPORT": "in_process"}  # A server that stops takes no POST.
    with connected(tmp_path, *options, "--graceful-timeout", "3", **environ) as (site, client):
        client.send("1")
        assert client.receive(timeout=30) == "launched"
        site.stop()
        assert [line["done"] for line in site.notes("done")] == [1]
