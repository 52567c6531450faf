"""The movement on every server of the table, without the fallback: what is promised, is kept."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.matrix import SERVERS, Server, Shop, opened
from tests.support.visitors import Visits, ordering, send_orders
from tests.support.waiting import BOUND, wait_until

#: ``.ci/long`` asks for twenty.
RELOADS = int(os.environ.get("RELOADS", "6"))

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]

#: Each of two threads in each of two processes may first ask whether it has the right address.
MOST_PINGS = 4

TASKS = ["bill", "pack", "thank"]


@pytest.fixture
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    server: Server = request.param
    with opened(server, tmp_path) as shop:
        yield shop


every_server = pytest.mark.parametrize("shop", SERVERS, ids=str, indirect=True)


@every_server
def test_each_of_600_envelopes_arrives_once_by_post(shop: Shop) -> None:
    visits = send_orders(shop.door, range(200))
    assert (visits.failed, visits.reset, visits.refused) == ([], [], [])
    shop.site.wait_for("filled", 600)
    notes = shop.site.notes("order")
    wanted = [(number, task) for number in range(200) for task in TASKS]
    assert sorted((note["order"], note["task"]) for note in notes) == wanted
    assert shop.filled() == shop.begun() == Counter(visits.accepted)
    places = {(note["method"], note["path"], note["served"]) for note in notes}
    assert places == {("POST", "/async-hooks/run", True)}
    assert {note["url"] for note in notes} == {shop.door.url(f"/order/{n}") for n in range(200)}
    if (arrived := shop.server.arrived) is not None:
        wait_until(lambda: len(re.findall(arrived, shop.site.log)) >= 600, "the log's last line")
        assert len(re.findall(arrived, shop.site.log)) <= 600 + MOST_PINGS
    assert shop.site.notes("failed") == []


@every_server
def test_the_visitor_never_waits_for_a_task(shop: Shop) -> None:
    together = 10 if shop.server.serves_beside_a_task else 1
    for turn in range(1, 4):
        shop.site.hold.touch()
        for number in range(together):
            assert shop.door.get(f"/visit/{number}")[0] == 200
        shop.site.wait_for("number", (turn - 1) * together + 1)
        assert len(shop.site.notes("done")) == (turn - 1) * together
        shop.site.hold.unlink()
        shop.site.wait_for("done", turn * together)


@every_server
def test_the_reader_of_a_stream_never_waits_for_a_task(shop: Shop) -> None:
    shop.site.hold.touch()
    status, body = shop.door.get("/stream/1")
    assert status == 200
    assert shop.site.notes("filled") == []
    shop.site.hold.unlink()
    shop.site.wait_for("filled", 3)
    assert shop.filled() == Counter(body.split())


@pytest.mark.parametrize(
    "shop", [server for server in SERVERS if server.prefix], ids=str, indirect=True
)
def test_behind_nginx_the_loopback_goes_straight_to_the_server(shop: Shop) -> None:
    assert shop.door.get("/order/1")[0] == 200
    shop.site.wait_for("filled", 3)
    wait_until(lambda: len(re.findall(str(shop.server.arrived), shop.site.log)) >= 3, "the log")
    [visit] = (shop.site.folder / "access.log").read_text().splitlines()
    assert "GET /de/shop/order/1 " in visit


@every_server
def test_an_orderly_stop_runs_what_waits(shop: Shop, record_property: Record) -> None:
    if shop.server.serves_beside_a_task:
        shop.site.hold.touch()
    visits = send_orders(shop.door, range(34))
    assert len(visits.accepted) == 102
    shop.site.wait_for("order", 1)
    shop.end()
    shop.site.hold.unlink(missing_ok=True)
    shop.site.process.wait(BOUND)
    assert_nothing_lost(shop, visits, record_property)


@every_server
def test_an_orderly_stop_under_load_loses_nothing_accepted(
    shop: Shop, record_property: Record
) -> None:
    with ordering(shop.door, shop.under_way) as visits:
        wait_until(lambda: len(visits.accepted) >= 90, "some orders")
        shop.end()
        shop.site.process.wait(BOUND)
    assert visits.failed == []
    assert_nothing_lost(shop, visits, record_property)


@pytest.mark.parametrize(
    "shop", [server for server in SERVERS if server.workers], ids=str, indirect=True
)
def test_reloads_under_load_lose_nothing_accepted(shop: Shop, record_property: Record) -> None:
    with ordering(shop.door, shop.under_way) as visits:
        for turn in range(1, RELOADS + 1):
            reload(shop, visits, turn)
    assert (visits.failed, visits.refused) == ([], [])
    wait_until(lambda: shop.under_way(visits) <= 0, "the last order")
    shop.end()
    shop.site.process.wait(BOUND)
    assert_nothing_lost(shop, visits, record_property)


def reload(shop: Shop, visits: Visits, turn: int) -> None:
    """Reload, and return once all workers are new and another visitor was answered."""
    accepted = len(visits.accepted)
    shop.site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: shop.has_started((turn + 1) * shop.server.workers), "new workers")
    wait_until(lambda: len(visits.accepted) > accepted, "another order")


def assert_nothing_lost(shop: Shop, visits: Visits, record_property: Record) -> None:
    """What a visitor was told is launched has run once; what none was told, at most once.

    Where the stop may break off a run, that is reported.
    """
    filled = shop.filled()
    reported = {line["failed"] for line in shop.site.notes("failed")}
    lost = set(visits.accepted) - set(filled)
    counts = {"accepted": len(visits.accepted), "reset": len(visits.reset)}
    for name, count in {**counts, "lost": len(lost), "reported": len(reported)}.items():
        record_property(name, count)
    said = f"{len(lost)} of {counts} were lost: {shop.site.notes('failed')[:3]} {shop.site.log}"
    assert lost <= reported, said
    assert len(reported) <= shop.server.broken_off, said
    assert set(shop.begun().values()) == set(filled.values()) == {1}, "Some ran twice."
