"""Ledgers without an app: an outbox on a fresh database, empty or filled by the million."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection
from sqlalchemy.sql.dml import UpdateBase

from async_hooks.delivery import Addition, DeliveryState, Terms
from async_hooks.envelope import Envelope, new_id
from async_hooks.outbox import store as statements
from async_hooks.outbox.database import Database, engine_for
from async_hooks.outbox.ledger import Ledger
from async_hooks.outbox.schema import deliveries

from .stores import Store, database

#: Given how far into a load a row comes, 0 to 1, returns what it has that others have not.
_Values = Callable[[float], dict[str, Any]]

#: The task of all envelopes made here.
TASK = "benchmarks.tiny"

#: Rows that are inserted in one transaction when a table is filled.
_LOAD = 10_000

#: Seconds over which the times of rows that were loaded are spread.
_HOUR = 3600.0


@contextmanager
def fresh_ledger(store: Store) -> Iterator[Ledger]:
    """Give the ledger of an outbox on a database of its own."""
    name = f"benchmark_{uuid4().hex}"
    with (
        tempfile.TemporaryDirectory() as folder,
        database(store, Path(folder), name) as url,
        ledger_on(url, Path(folder)) as ledger,
    ):
        yield ledger


@contextmanager
def ledger_on(url: str, folder: Path) -> Iterator[Ledger]:
    """Give the ledger of the outbox at ``url``, as a process has it that was configured so."""
    outbox = Database(lambda: engine_for(url, folder, synchronous="NORMAL"), is_own=True)
    outbox.migrate()
    try:
        yield Ledger(f"benchmark-{new_id()}", outbox)
    finally:
        outbox.engine.dispose()


def addition(task: str = TASK) -> Addition:
    """Return what one small launch adds."""
    body = json.dumps({"number": 0, "name": "Ada Lovelace", "email": "ada@example.org"})
    return Addition(Envelope(id=new_id(), task=task, body=body, budget=10_000), Terms())


def load_waiting(ledger: Ledger, rows: int, *, task: str = TASK) -> None:
    """Add so many deliveries that have become due one after the other during the last hour."""
    since = ledger.now() - _HOUR
    _load(ledger, rows, lambda part: {"run_at": since + part * _HOUR}, task)


def load_finished(ledger: Ledger, rows: int) -> None:
    """Add so many that were completed one after the other during the hour before that."""
    since = ledger.now() - 2 * _HOUR

    def completed(part: float) -> dict[str, Any]:
        at = since + part * _HOUR
        done = {"state": DeliveryState.COMPLETED.value, "attempts": 1, "result": '{"result":null}'}
        return {**done, "run_at": at, "started_at": at, "finished_at": at}

    _load(ledger, rows, completed, TASK)


def refresh_statistics(ledger: Ledger) -> None:
    """Let PostgreSQL learn about the rows, as its autovacuum would do in a while."""
    engine = ledger.database.engine
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql(f"VACUUM (ANALYZE) {deliveries.name}")
            connection.invalidate()


def _load(ledger: Ledger, rows: int, values: _Values, task: str) -> None:
    insert = statements.INSERT[ledger.database.engine.dialect.name]
    template = statements.row_of(addition(task), ledger.now(), None)
    for first in range(0, rows, _LOAD):
        numbers = range(first, min(first + _LOAD, rows))
        batch = [_row(template, values(number / rows)) for number in numbers]
        ledger.database.write(partial(_execute, insert, batch))


def _execute(insert: UpdateBase, rows: list[dict[str, Any]], connection: Connection) -> None:
    connection.execute(insert, rows)


def _row(template: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {**template, "id": new_id(), "created_at": values["run_at"], **values}
