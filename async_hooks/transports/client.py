"""What a client of the loopback is, and the errors for what can happen to it.

A client posts one body and returns the head of the answer. A thread owns its client, and so its
connection; no other thread touches it. After any error, and after 1.5 seconds of idleness (gunicorn
closes after 2), the connection is dropped, so that no POST is ever repeated blindly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..errors import ConnectionBroken, TimedOut, Unreachable
from ..texts import error_text, text_of

#: Seconds after which an idle connection is not used any more.
IDLE = 1.5

CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The status and, by lower-case name, the headers of an answer."""

    status: int
    headers: dict[str, str]


class Client(Protocol):
    def post(self, body: bytes, timeout: float, check: Callable[[], None]) -> Answer:
        """Post ``body`` and wait for the head of the answer, for up to ``timeout`` seconds.

        ``check`` is called now and then while nothing comes; what it raises ends the wait.

        :raises TransportError: with ``unsent`` true if no byte of the request went out.
        """
        ...


def unreachable(url: str, error: Exception) -> Unreachable:
    return Unreachable(f"{url!r} can't be reached ({reason(error)}). Does the app listen there?")


def timed_out(url: str, timeout: float) -> TimedOut:
    return TimedOut(
        f"{url!r} gave no verdict within {timeout:g} seconds; the task may still be running. "
        "Raise its 'timeout', or 'ASYNC_HOOKS_TIMEOUT'."
    )


def broken(url: str, error: Exception) -> ConnectionBroken:
    return ConnectionBroken(
        f"The connection to {url!r} broke before a verdict came ({reason(error)}). "
        "Did the worker die, was the server stopped, or does it limit the size of requests?"
    )


def reason(error: Exception) -> str:
    return error_text(error) if text_of(error) else type(error).__name__
