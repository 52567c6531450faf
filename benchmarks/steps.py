"""An outbox without an app: filled by the million rows, and what each step of a delivery takes.

Of the benchmarks, only this module uses what is internal to async_hooks.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import insert

from async_hooks.delivery import Claim, DeliveryState, Ending
from async_hooks.envelope import Envelope, Hold, new_id
from async_hooks.limits import Limits
from async_hooks.outbox.keys.promotion import Promotion
from async_hooks.outbox.queries import Queries
from async_hooks.outbox.rows import row_of
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import engine_for
from async_hooks.outbox.sql.schema import deliveries
from async_hooks.outbox.store import Store

from .app import TASK
from .systems import Backend, database

T = TypeVar("T")

#: The names of the steps, in their order.
STEPS = ("insert", "claim", "begin", "complete")

#: Deliveries that are claimed at once.
_BATCH = 100

#: Rows that are inserted in one transaction when a table is filled.
_ROWS = 10_000

#: Seconds over which the times of such rows are spread.
_HOUR = 3600.0

#: Whose the rows are.
_AUDIENCE = "benchmark"


@contextmanager
def fresh_outbox(backend: Backend) -> Iterator[Store]:
    """Give an outbox on a database of its own."""
    name = f"benchmark_{uuid4().hex}"
    with (
        tempfile.TemporaryDirectory() as folder,
        database(backend, Path(folder), name) as url,
        outbox_at(url, Path(folder)) as outbox,
    ):
        yield outbox


@contextmanager
def outbox_at(url: str, folder: Path) -> Iterator[Store]:
    """Give the outbox at ``url``, as a process has it that was configured so."""
    outbox = Database(lambda: engine_for(url, folder, synchronous="NORMAL"), is_own=True)
    outbox.create()
    try:
        yield Store(outbox, [_AUDIENCE])
    finally:
        outbox.engine.dispose()


def add_waiting(outbox: Store, rows: int) -> None:
    """Add so many deliveries that have become due one after the other during the last hour."""
    since = outbox.now() - _HOUR
    _fill(outbox, rows, lambda part: {"run_at": since + part * _HOUR})


def add_finished(outbox: Store, rows: int) -> None:
    """Add so many that were completed one after the other during the hour before that."""
    since = outbox.now() - 2 * _HOUR

    def completed(part: float) -> dict[str, Any]:
        at = since + part * _HOUR
        done = {"state": DeliveryState.COMPLETED.value, "attempts": 1, "result": '{"result":null}'}
        return {**done, "run_at": at, "started_at": at, "finished_at": at}

    _fill(outbox, rows, completed)


def refresh_statistics(outbox: Store) -> None:
    """Have PostgreSQL count the rows, as its autovacuum would do in a while."""
    engine = outbox.database.engine
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql(f"VACUUM (ANALYZE) {deliveries.name}")
            connection.invalidate()


def time_steps(outbox: Store, batches: int) -> dict[str, float]:
    """Add, claim, begin and complete so many batches; return each step's median in microseconds.

    As many rows are waiting afterwards as before.
    """
    times: dict[str, list[float]] = {step: [] for step in STEPS}

    def timed(step: str, function: Callable[..., T], *arguments: Any) -> T:
        result, microseconds = _timed(function, *arguments)
        times[step].append(microseconds)
        return result

    for _ in range(batches):
        for _ in range(_BATCH):
            timed("insert", outbox.add, [_envelope()])
        claimed, _ = timed("claim", outbox.claim, Claim("process", new_id()), [(TASK, "")], _BATCH)
        if len(claimed) != _BATCH:
            raise RuntimeError(f"{len(claimed)} deliveries were claimed instead of {_BATCH}.")
        for envelope in claimed:
            timed("begin", outbox.begin, envelope, "process")
            timed("complete", outbox.record, envelope, Ending(DeliveryState.COMPLETED))
    return {step: median(times[step]) for step in STEPS}


def time_purge(outbox: Store) -> list[float]:
    """Purge all that has finished; return what each transaction took, in microseconds."""
    times, found = [], 1
    queries = Queries(outbox.database, outbox.audiences, outbox.now)
    while found:
        (found, _), microseconds = _timed(queries.purge_page, 0)
        times.append(microseconds)
    return times


def add_held(outbox: Store, rows: int, *, keys: int) -> None:
    """Add so many that limits hold, whose keys take turns."""
    held = {"state": DeliveryState.HELD.value, "run_at": outbox.now() - _HOUR}
    numbers = count()
    _fill(outbox, rows, lambda part: {**held, "limit_key": _key(next(numbers) % keys)})


def time_claims(outbox: Store, batches: int) -> float:
    """Claim so many batches, and nothing is left; return the median of a claim in microseconds."""
    times = []
    add_waiting(outbox, _BATCH)
    for _ in range(batches):
        found, took = _timed(outbox.claim, Claim("process", new_id()), [(TASK, "")], _BATCH)
        if len(found[0]) != _BATCH:
            raise RuntimeError(f"{len(found[0])} deliveries were claimed instead of {_BATCH}.")
        times.append(took)
        for envelope in found[0]:
            outbox.begin(envelope, "process")
            outbox.record(envelope, Ending(DeliveryState.COMPLETED))
        add_waiting(outbox, _BATCH)
    for envelope in outbox.claim(Claim("process", new_id()), [(TASK, "")], _BATCH)[0]:
        outbox.begin(envelope, "process")
        outbox.record(envelope, Ending(DeliveryState.COMPLETED))
    return median(times)


def time_deliveries(outbox: Store, deliveries: int, *, limit: int | None, backlog: int) -> float:
    """Carry so many from their launch to their end; return what one takes, in microseconds.

    As many as ``backlog`` are launched before two are claimed at a time; with a ``limit``, each is
    held, and promoted as relays do it.
    """
    limits = Limits(limit, None, 1)
    promotion = Promotion(outbox.database, outbox.audiences, outbox.now, lambda name: limits)
    kinds = frozenset({(TASK, "")})
    key = None if limit is None else _key(0)
    hold = None if key is None else Hold("limit_key", key)

    def look() -> list[Envelope]:
        if hold is not None:
            promotion.promote(hold, kinds)
        return outbox.claim(Claim("process", new_id()), kinds, 2)[0]

    def carry() -> None:
        done = launched = 0
        while done < deliveries:
            while launched < min(deliveries, done + backlog):
                outbox.add([_envelope()._replace(limit_key=key)])
                launched += 1
            for envelope in look():
                outbox.begin(envelope, "process")
                outbox.record(envelope, Ending(DeliveryState.COMPLETED))
                done += 1

    return _timed(carry)[1] / deliveries


def _key(number: int) -> str:
    return f"{number:064x}"


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    started = time.perf_counter_ns()
    result = function(*arguments)
    return result, (time.perf_counter_ns() - started) / 1000


def _fill(outbox: Store, rows: int, values: Callable[[float], dict[str, Any]]) -> None:
    """Insert so many; ``values`` returns what a row has of its own, given the part before it."""
    template = row_of(_envelope(), audience=_AUDIENCE, now=outbox.now())
    for first in range(0, rows, _ROWS):
        batch = []
        for number in range(first, min(first + _ROWS, rows)):
            own = values(number / rows)
            batch.append({**template, "id": new_id(), "created_at": own["run_at"], **own})
        _insert(outbox.database, batch)


def _insert(target: Database, rows: list[dict[str, Any]]) -> None:
    with target.engine.begin() as connection:
        connection.execute(insert(deliveries), rows)


def _envelope() -> Envelope:
    """Return what one small launch adds."""
    body = json.dumps({"number": 0, "name": "Ada Lovelace", "email": "ada@example.org"})
    return Envelope(id=new_id(), task=TASK, body=body)
