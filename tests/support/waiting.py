"""Waiting for what happens elsewhere: in a thread, or in another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds after which what has not happened will not happen.
BOUND = 30.0


def wait_until(
    is_met: Callable[[], Any], what: str = "it", *, every: float = 0.01, bound: float = BOUND
) -> Any:
    """Return what ``is_met`` returns once that is true; fail after a generous ``bound``.

    It is asked ``every`` so many seconds.
    """
    deadline = time.monotonic() + bound
    while not (met := is_met()):
        assert time.monotonic() < deadline, f"{what} did not happen within {bound} seconds"
        time.sleep(every)
    return met
