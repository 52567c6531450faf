"""What runs returned, as their rows keep it, and what ``finish`` is told of it."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from ..delivery import DeliveryState
from .sql.connections import Connection
from .sql.database import Database
from .sql.schema import deliveries

_d = deliveries.c

_RESULTS = (
    sa.select(_d.receiver, _d.result)
    .where(
        _d.parent_id == sa.bindparam("of"),
        _d.state == DeliveryState.COMPLETED.value,
        _d.receiver != "",
    )
    .order_by(_d.position)
)
_RESULT = sa.select(_d.state, _d.result).where(_d.id == sa.bindparam("of"))


def result_of(database: Database, delivery_id: str) -> Any:
    """Return what ``finish`` is told of a launch: its receivers' results by name.

    Where none was reached, what ``run_action`` returned.
    """
    row = database.execute(_RESULT, {"of": delivery_id}).one()
    if row is None:
        return None
    if row.result is None and row.state != DeliveryState.COMPLETED:
        # It failed, or somebody has let it, or a part of it, be sent again meanwhile.
        return results_of(database, delivery_id)
    value = kept(row.result)
    receiver = value.get("receiver")
    return value.get("result") if receiver is None else {receiver: _value_of(value)}


def results_of(runs: Connection | Database, parent_id: str) -> dict[str, Any]:
    """Return what each receiver returned that has succeeded, by name."""
    rows = runs.execute(_RESULTS, {"of": parent_id}).rows
    return {row.receiver: _value_of(kept(row.result)) for row in rows}


def kept(text: str | None) -> dict[str, Any]:
    """Return what a row keeps for its result; of a spoilt one, that it is None."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _value_of(value: dict[str, Any]) -> Any:
    """Return what a receiver returned: by default, a run's result is a list of its one result."""
    result = value.get("result")
    return result[0] if isinstance(result, list) and len(result) == 1 else result
