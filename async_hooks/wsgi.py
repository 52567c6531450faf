"""WSGI: who calls, and what every caller owes a response's body."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any


def drain(body: Iterable[bytes]) -> None:
    """Read ``body`` to its end, throw it away and close it."""
    try:
        for _ in body:
            pass
    finally:
        close(body)


def close(body: Any) -> None:
    """Close ``body``, if it is of the kind that wants to be."""
    if hasattr(body, "close"):
        body.close()


def is_from_keyboard(error: BaseException) -> bool:
    """Tell whether somebody pressed Ctrl-C; in another thread than the main one, code raised it."""
    in_main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and in_main


def is_served(environ: Mapping[str, Any]) -> bool:
    """Tell whether a server serves this request: they name themselves, the test client doesn't."""
    return "SERVER_SOFTWARE" in environ or "uwsgi.version" in environ
