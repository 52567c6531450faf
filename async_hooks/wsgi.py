"""What every WSGI caller owes a response's body."""

from __future__ import annotations

from collections.abc import Iterable
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
