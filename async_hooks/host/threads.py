"""Threads of our own, which end with the process."""

from __future__ import annotations

import threading
from collections.abc import Callable


def started(name: str, work: Callable[[], object]) -> threading.Thread | None:
    """Return a daemon thread that does ``work``; None where no more threads can be started."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
