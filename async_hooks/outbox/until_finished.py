"""Waiting for the end of a delivery, where it keeps no thread that the delivery may need."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from flask import has_request_context

from ..config import Config
from ..current import current_envelope
from ..delivery import Delivery
from ..errors import AsyncHooksError
from ..validation import checked, seconds_or_zero

#: Seconds between two looks: doubled from the first to the second.
_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


def wait_until_finished(
    config: Config,
    get: Callable[[str], Delivery | None],
    delivery_id: str,
    timeout: float | timedelta,
) -> Delivery:
    """Return the delivery of this id once it has finished, as :meth:`.Outbox.wait` promises."""
    _refuse_where_it_may_wait_for_itself(config)
    deadline = time.monotonic() + checked(seconds_or_zero, timeout, "timeout")
    pause = _PAUSE
    while True:
        delivery = get(delivery_id)
        if delivery is None:
            raise AsyncHooksError(
                f"No delivery {delivery_id!r} (it was not committed yet, never existed, or has "
                "been purged)."
            )
        if delivery.is_finished:
            return delivery
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"Delivery {delivery_id!r} is {delivery.state} after the time.")
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _refuse_where_it_may_wait_for_itself(config: Config) -> None:
    if current_envelope:
        raise AsyncHooksError(
            "'outbox.wait' keeps the thread that what it waits for may need. Not in a run: launch "
            "from there, and let the task that is launched go on."
        )
    if config.relay and has_request_context():
        raise AsyncHooksError(
            "'outbox.wait' keeps the thread that what it waits for may need. Not in a request, "
            "unless 'ASYNC_HOOKS_RELAY' is False and workers deliver: answer with the id, and look "
            "with 'outbox.get'."
        )
