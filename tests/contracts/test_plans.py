"""However many rows wait or have finished: what relays ask for all the time is found by a seek."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from async_hooks.outbox import queries as upkeep
from async_hooks.outbox import store
from async_hooks.outbox.schema import deliveries
from tests.contracts.outboxes import KNOWN, Outbox, an_outbox

_d = deliveries.c


@pytest.fixture(scope="module")
def outbox(tmp_path_factory: Any) -> Iterator[Outbox]:
    folder: Path = tmp_path_factory.mktemp("sqlite")
    with an_outbox("sqlite", folder) as made:
        yield made


@pytest.mark.parametrize(
    ("statement", "search"),
    [
        (store._FIRST_LANE, "async_hooks_due (state=?)"),
        (store._NEXT_IN_QUEUE, "async_hooks_due (state=? AND queue=? AND priority>?)"),
        (store._NEXT_QUEUE, "async_hooks_due (state=? AND queue>?)"),
        (
            store._select_due(frozenset(KNOWN)),
            "async_hooks_due (state=? AND queue=? AND priority=? AND run_at<?)",
        ),
        (
            select(_d.id).where(upkeep._is_old(0)).order_by(_d.finished_at),
            "async_hooks_finished (finished_at<?)",
        ),
        (
            select(_d.id).order_by(_d.created_at.desc(), _d.id.desc()),
            "async_hooks_created",
        ),
    ],
    ids=["first lane", "next priority", "next queue", "due", "old", "newest"],
)
def test_it_is_found_by_a_seek(outbox: Outbox, statement: Any, search: str) -> None:
    with outbox.database.engine.connect() as connection:
        compiled = statement.compile(connection)
        values = (0,) * len(compiled.positiontup)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values).all()
    told = [row.detail for row in plan]
    assert any(search in step for step in told), told
    assert not any("TEMP B-TREE" in step for step in told), told
