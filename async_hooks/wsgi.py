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
    """Tell whether a server serves this request, which need not name itself, or a test client.

    Werkzeug's test client, which is Flask's, imitates both gunicorn and uWSGI, and names neither.
    """
    is_flasks = environ.keys() >= {"RAW_URI", "REQUEST_URI"} and "SERVER_SOFTWARE" not in environ
    is_webtests = environ.get("paste.testing", False)
    return not (is_flasks or is_webtests)
