"""A row as its users see it."""

from __future__ import annotations

import json
from typing import Any

from ..delivery import Delivery
from ..receivers import options_of
from ..state import State
from .checkpoints import shown_last
from .report import moment
from .rows import envelope_of, shown_state

#: What a delivery has from its row as it is.
_AS_IT_IS = (
    *("id", "parent_id", "root_id", "task", "queue", "priority", "attempts", "crashes", "ref"),
)


def delivery_of(state: State, row: Any) -> Delivery:
    """Return the delivery in ``row``; where this code can't read it, what is certain of it."""
    envelope, problem = envelope_of(row, lease=None, attempt=row.attempts)
    data, result, cursor, progress = None, None, None, None
    try:
        data = envelope.data if problem is None else None
        result = json.loads(row.result)["result"] if row.result is not None else None
        cursor = json.loads(row.cursor) if row.cursor is not None else None
        shown = shown_last(row)
        progress = json.loads(shown) if shown is not None else None
    except Exception as unreadable:  # One row that can't be read hides no other.
        problem = str(unreadable)
    return Delivery(
        **{name: getattr(row, name) for name in _AS_IT_IS},
        receiver=envelope.receiver,
        state=shown_state(row.state),
        paused=bool(row.paused),
        max_attempts=options_of(state, envelope).max_attempts,
        run_at=moment(row.run_at),
        created_at=moment(row.created_at),
        finished_at=None if row.finished_at is None else moment(row.finished_at),
        error=row.error if problem is None else f"This code can't read the row: {problem}",
        result=result,
        data=data,
        cursor=cursor,
        progress=progress,
    )
