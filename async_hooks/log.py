"""The log lines: one subscriber words what the lifecycle signals say."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any

from . import signals
from .envelope import Envelope
from .errors import TransportError
from .texts import error_text, log_exception, text_of

logger = logging.getLogger("async_hooks")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: object) -> str:
    """Return ``text`` with its control characters spelled out, so that it can't forge a line."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text_of(text))


def ids(envelope: Envelope) -> dict[str, Any]:
    """Return what a log record about ``envelope`` carries besides its text."""
    receiver = envelope.receiver
    return {
        "delivery": one_line(envelope.id),
        "task": one_line(envelope.task),
        "receiver": None if receiver is None else one_line(receiver),
        "attempt": envelope.attempt,
    }


def subscribe() -> None:
    """Connect the wording to the signals; once per process is enough, more does no harm."""
    signals.task_started.connect(_started, weak=False)
    signals.task_overdue.connect(_overdue, weak=False)
    signals.task_succeeded.connect(_succeeded, weak=False)
    signals.task_failed.connect(_failed, weak=False)
    signals.task_discarded.connect(_discarded, weak=False)
    signals.task_cancelled.connect(_cancelled, weak=False)
    signals.task_rejected.connect(_rejected, weak=False)
    signals.queue_paused.connect(_paused, weak=False)
    signals.queue_resumed.connect(_resumed, weak=False)
    signals.worker_error.connect(_process_died, weak=False)


def _started(sender: Any, /, *, envelope: Envelope) -> None:
    _log(logging.DEBUG, envelope, "started.")


def _overdue(sender: Any, /, *, envelope: Envelope) -> None:
    _log(logging.WARNING, envelope, "is overdue: it runs for longer than its timeout, and goes on.")


def _succeeded(sender: Any, /, *, envelope: Envelope, result: Any) -> None:
    _log(logging.INFO, envelope, "succeeded.")


def _failed(sender: Any, /, *, envelope: Envelope, exception: BaseException) -> None:
    if envelope.attempt == 0:
        # Nobody else will show where it came from: the signal's sender goes on.
        _log(logging.ERROR, envelope, "could not be launched.", error=exception)
    elif issubclass(type(exception), TransportError):
        _log(logging.ERROR, envelope, "was not delivered: %s", exception)
    else:
        # The traceback stands in Flask's own line, as for any view that raises.
        _log(logging.ERROR, envelope, "failed: %s", error_text(exception))


def _discarded(sender: Any, /, *, envelope: Envelope, error: str) -> None:
    _log(logging.ERROR, envelope, "was discarded: %s", error)


def _cancelled(sender: Any, /, *, envelope: Envelope) -> None:
    _log(logging.INFO, envelope, "was cancelled.")


def _rejected(sender: Any, /, *, envelope: Envelope | None, reason: str) -> None:
    if envelope is not None:  # Not a stranger: the sender will say what came of it.
        _log(logging.INFO, envelope, "was refused: %s", reason)
    elif (unsaid := _strangers.count()) is not None:
        more = f" ({unsaid} more were refused since the last such line.)" if unsaid else ""
        logger.warning("The endpoint refused a request: %s%s", one_line(reason), more)


def _paused(sender: Any, /, *, queue: str) -> None:
    logger.info("Queue %r was paused.", one_line(queue))


def _resumed(sender: Any, /, *, queue: str) -> None:
    logger.info("Queue %r was resumed.", one_line(queue))


def _process_died(sender: Any, /, *, name: str, exit_code: int | None, signal: int | None) -> None:
    # The supervisor, which has no app, has said so where it could: its standard error.
    how = f"exited with code {exit_code}" if signal is None else f"was killed by signal {signal}"
    logger.warning("Worker %r continues after its process %s.", name, how)


def _log(
    level: int,
    envelope: Envelope,
    what: str,
    *facts: object,
    error: BaseException | None = None,
) -> None:
    """Log what became of ``envelope``; its ids stand in the line, and on the record.

    ``error`` is one whose traceback is shown.
    """
    if not logger.isEnabledFor(level):
        return
    receiver = f", receiver {envelope.receiver!r}" if envelope.receiver is not None else ""
    line = f"Task %r%s (envelope %s, attempt %d) {what}"
    args = (
        *(envelope.task, receiver, one_line(envelope.id), envelope.attempt),
        *map(one_line, facts),
    )
    if error is None:
        logger.log(level, line, *args, extra=ids(envelope))
    else:
        log_exception(logger, error, line, *args, extra=ids(envelope))


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
