"""However many rows wait or have finished: what relays ask for all the time is found by a seek."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from async_hooks.outbox import audiences, claiming, groups
from async_hooks.outbox.keys import held
from async_hooks.outbox.sql.schema import deliveries
from async_hooks.outbox.sql.statements import compiled
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
        (claiming._FIRST_HEAD, "async_hooks_due (audience=? AND state=?)"),
        (
            claiming._NEXT_IN_QUEUE,
            "async_hooks_due (audience=? AND state=? AND queue=? AND priority>?)",
        ),
        (claiming._NEXT_QUEUE, "async_hooks_due (audience=? AND state=? AND queue>?)"),
        (
            claiming._select_due(frozenset(KNOWN)),
            "async_hooks_due (audience=? AND state=? AND queue=? AND priority=? AND run_at<?)",
        ),
        (audiences._NEXT, "async_hooks_newest (audience>?)"),
        (groups._UNFINISHED, "async_hooks_children (parent_id=? AND state=?)"),
        (
            groups._PARENTS,
            "async_hooks_due (audience=? AND state=? AND (queue,priority,",
        ),
        (held.BY["limit_key"].first, "async_hooks_limit (audience=? AND state=? AND limit_key=?)"),
        (
            held.BY["rate_key"].behind,
            "async_hooks_rate (audience=? AND state=? AND rate_key=? AND priority>?)",
        ),
        (held.BY["limit_key"].next, "async_hooks_limit (audience=? AND state=? AND limit_key>?)"),
        (
            held.BY["limit_key"].count,
            "async_hooks_limit (audience=? AND state=? AND limit_key=?)",
        ),
        (
            held.due("rate_key", frozenset(KNOWN), 2),
            "async_hooks_rate (audience=? AND state=? AND rate_key=? AND priority=? AND run_at<?)",
        ),
    ],
    ids=[
        *(
            "first head",
            "next priority",
            "next queue",
            "due",
            "next audience",
            "children",
            "groups",
        ),
        *("held", "held behind", "next held", "promoted", "held and due"),
    ],
)
def test_it_is_found_by_a_seek(outbox: Outbox, statement: Any, search: str) -> None:
    assert_seeks(plan_of(outbox, text_of(outbox, statement)), search)


def test_what_is_old_is_found_by_a_seek(outbox: Outbox) -> None:
    old = select(_d.id).where(outbox.queries._finished(0))
    sql = text_of(outbox, old.order_by(_d.finished_at))
    assert_seeks(plan_of(outbox, sql), "async_hooks_finished (audience=? AND finished_at<?)")


def test_the_newest_are_read_in_the_order_of_their_ids(outbox: Outbox) -> None:
    newest = select(deliveries).where(outbox.queries._is_ours()).order_by(_d.id.desc()).limit(50)
    sql = text_of(outbox, newest)
    assert_seeks(plan_of(outbox, sql), "async_hooks_newest (audience=?)")


@pytest.mark.parametrize(
    ("by", "search"),
    [
        ({"parent_id": "x"}, "async_hooks_children (parent_id=?)"),
        ({"root": "x"}, "async_hooks_root (root_id=?)"),
        ({"ref": "x"}, "async_hooks_ref (ref=?)"),
    ],
    ids=str,
)
def test_what_is_named_is_found_by_a_seek(outbox: Outbox, by: dict[str, str], search: str) -> None:
    root = by.get("root")
    where = outbox.queries._where({} if root else by, root=root)
    plan = plan_of(outbox, text_of(outbox, select(deliveries).where(where).order_by(_d.id.desc())))
    assert any(search in step for step in plan), plan


@pytest.mark.parametrize("change", ["cancel", "retry_batch", "pause_delivery", "resume_delivery"])
def test_what_is_changed_by_its_id_is_found_by_a_seek(outbox: Outbox, change: str) -> None:
    parent = outbox.begun()
    parts = [parent.for_receiver(name, number) for number, name in enumerate(("one", "two"))]
    assert outbox.complete(parent, additions=parts)
    texts = outbox.database._pools[os.getpid()].texts
    before = set(texts)
    getattr(outbox.queries, change)([parent.id] if change == "retry_batch" else parent.id)
    made = [texts[each].sql for each in set(texts) - before]
    assert any(sql.startswith("UPDATE") for sql in made)
    for sql in made:
        assert not any("(audience=?" in step for step in plan_of(outbox, sql)), sql


def text_of(outbox: Outbox, statement: Any) -> str:
    return compiled(statement, outbox.database.engine.dialect).sql


def plan_of(outbox: Outbox, sql: str) -> list[str]:
    with outbox.database.engine.connect() as connection:
        values = (0,) * sql.count("?")
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()
    return [row.detail for row in plan]


def assert_seeks(plan: list[str], search: str) -> None:
    assert any(search in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan
