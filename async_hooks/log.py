"""The log lines: one subscriber words what the lifecycle signals say."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any

from .envelope import Envelope
from .errors import TransportError
from .signals import (
    task_discarded,
    task_failed,
    task_rejected,
    task_started,
    task_succeeded,
)

logger = logging.getLogger("async_hooks")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: object) -> str:
    """Return ``text`` with its control characters spelled out, so that it can't forge a line."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], str(text))


def subscribe() -> None:
    """Connect the wording to the signals; once per process is enough, more does no harm."""
    task_started.connect(_started, weak=False)
    task_succeeded.connect(_succeeded, weak=False)
    task_failed.connect(_failed, weak=False)
    task_discarded.connect(_discarded, weak=False)
    task_rejected.connect(_rejected, weak=False)


def _started(sender: Any, /, *, envelope: Envelope) -> None:
    logger.debug("%s started.", _named(envelope))


def _succeeded(sender: Any, /, *, envelope: Envelope, result: Any) -> None:
    logger.info("%s succeeded.", _named(envelope))


def _failed(sender: Any, /, *, envelope: Envelope, exception: BaseException) -> None:
    if envelope.attempt == 0:
        # Nobody else will show where it came from: the signal's sender goes on.
        logger.error("%s could not be launched.", _named(envelope), exc_info=exception)
    elif isinstance(exception, TransportError):
        logger.error("%s was not delivered: %s", _named(envelope), one_line(exception))
    else:
        # The traceback stands in Flask's own line, as for any view that raises.
        kind = type(exception).__name__
        logger.error("%s failed: %s: %s", _named(envelope), kind, one_line(exception))


def _discarded(sender: Any, /, *, envelope: Envelope, error: str) -> None:
    logger.error("%s was discarded: %s", _named(envelope), one_line(error))


def _rejected(sender: Any, /, *, envelope: Envelope | None, reason: str) -> None:
    if envelope is not None:  # Not a stranger: the sender will say what came of it.
        logger.info("%s was refused: %s", _named(envelope), one_line(reason))
    elif (unsaid := _strangers.count()) is not None:
        more = f" ({unsaid} more were refused since the last such line.)" if unsaid else ""
        logger.warning("The endpoint refused a request: %s%s", one_line(reason), more)


class _Brake:
    """Lets a burst through and then one a minute, so that nobody can fill the log from outside."""

    _BURST, _SECONDS = 10, 60.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = float("-inf")
        self._said = self._unsaid = 0

    def count(self) -> int | None:
        """Return how many were not said since the last time, or None if this shall not be."""
        with self._lock:
            if time.monotonic() - self._since >= self._SECONDS:
                self._since, self._said = time.monotonic(), 0
            elif self._said >= self._BURST:
                self._unsaid += 1
                return None
            self._said += 1
            unsaid, self._unsaid = self._unsaid, 0
            return unsaid


_strangers = _Brake()


def _named(envelope: Envelope) -> str:
    receiver = f", receiver {envelope.receiver!r}" if envelope.receiver is not None else ""
    which = f"envelope {one_line(envelope.id)}, attempt {envelope.attempt}"
    return f"Task {envelope.task!r}{receiver} ({which})"
