"""What tells a task that its delivery is discarded, and that its launch is over."""

from __future__ import annotations

import json

from flask import Flask

from ..envelope import DISCARDED, Envelope, new_id
from ..state import state_of
from ..task import AsyncTask


def notices_of(app: Flask, envelope: Envelope, error: str) -> list[Envelope]:
    """Return what tells its task, in runs of their own, that ``envelope`` is discarded, if it asks.

    ``error`` is the text of the last error. A launch is over then; that of a part may not be.
    """
    finish = [envelope.for_finish()] if envelope.finishes else []
    task = state_of(app).task_of(envelope)
    if task is None or task.discarded is AsyncTask.discarded or envelope.tells_of_an_end:
        return finish
    try:
        told = {"data": envelope.data, "error": error, "of": [envelope.id, envelope.receiver]}
        body = json.dumps(told, separators=(",", ":"))
    except (ValueError, RecursionError):  # Its row was spoilt: nobody could be given its data.
        return finish
    notice = envelope._replace(
        id=new_id(),
        body=body,
        receiver=DISCARDED,
        parent_id=None,
        position=None,
        root_id=envelope.parent_id or envelope.id,
        queue=task.queue,
        unique_key=None,
        ref=None,
        finishes=False,
        waiting_key=None,
        limit_key=None,
        rate_key=None,
    )
    return [notice, *finish]
