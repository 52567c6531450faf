"""The movement on ASGI servers, whose adapters do not say which server serves."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.servers import answers, free_port
from tests.support.services import require_module
from tests.support.site import SHOP, Site, running
from tests.support.visitors import Door, send_orders
from tests.support.waiting import BOUND, wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., tuple[Site, Door]]

#: By name: the packages that are needed, and the command without its port.
SERVERS = {
    "hypercorn": (["hypercorn"], ["hypercorn", f"wsgi:{SHOP}"]),
    "uvicorn": (["uvicorn"], ["uvicorn", "--interface", "wsgi", SHOP]),
    "uvicorn, asgiref": (["uvicorn", "a2wsgi"], ["uvicorn", "tests.servers.asgi:by_asgiref"]),
    "uvicorn, a2wsgi": (["uvicorn", "a2wsgi"], ["uvicorn", "tests.servers.asgi:by_a2wsgi"]),
}


@pytest.fixture(params=SERVERS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    packages, command = SERVERS[request.param]
    for package in packages:
        require_module(package)
    with ExitStack() as stack:

        def start(**environ: str) -> tuple[Site, Door]:
            port = free_port()
            bind = (
                ["--bind", f"127.0.0.1:{port}"]
                if "hypercorn" in packages
                else ["--port", f"{port}"]
            )
            is_up = partial(answers, ("127.0.0.1", port))
            # Another shell's background job would have Ctrl-C ignored, and so would its children.
            arguments = ["env", "--default-signal=INT", sys.executable, "-m", *command, *bind]
            site = stack.enter_context(running(tmp_path, arguments, is_up, **environ))
            return site, Door(port=port)

        yield start


def test_each_envelope_arrives_once_by_post(start: Start) -> None:
    site, door = start(SITE_ASYNC_HOOKS_FALLBACK="null")
    visits = send_orders(door, range(20))
    assert len(visits.accepted) == 60
    notes = site.wait_for("filled", 60)
    assert sorted(note["id"] for note in notes) == sorted(visits.accepted)
    assert {note["served"] for note in site.notes("order")} == {True}
    assert {note["url"] for note in site.notes("order")} == {
        door.url(f"/order/{number}") for number in range(20)
    }
    assert site.notes("failed") == []


def test_the_reader_of_a_stream_never_waits_for_a_task(start: Start) -> None:
    site, door = start(SITE_ASYNC_HOOKS_FALLBACK="null")
    site.hold.touch()
    status, body = door.get("/stream/1")
    assert (status, site.notes("filled")) == (200, [])
    site.hold.unlink()
    site.wait_for("filled", 3)
    assert sorted(line["id"] for line in site.notes("filled")) == sorted(body.split())


def test_an_orderly_stop_runs_what_waits(start: Start) -> None:
    site, door = start()
    site.hold.touch()
    visits = send_orders(door, range(10))
    site.wait_for("order", 1)
    site.process.send_signal(signal.SIGINT)
    site.hold.unlink()
    assert site.process.wait(BOUND) == 0
    assert {line["id"] for line in site.notes("filled")} == set(visits.accepted)


def test_after_a_kill_the_backlog_is_worked_once_a_page_is_served(
    start: Start, tmp_path: Path
) -> None:
    outbox = {"SITE_ASYNC_HOOKS_OUTBOX": f"sqlite:///{tmp_path / 'outbox.db'}"}
    killed, door = start(**outbox)
    killed.hold.touch()
    visits = send_orders(door, range(14))
    assert len(visits.accepted) == 42
    killed.kill()
    killed.hold.unlink()
    site, door = start(**outbox)
    assert door.get("/") == (200, "up")
    wait_until(
        lambda: {line["id"] for line in site.notes("filled")} == set(visits.accepted),
        "the backlog's end",
    )
