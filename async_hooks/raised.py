"""What a task's methods and receivers raise to say what becomes of a launch or a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from .validation import seconds_or_zero


class SkipTask(Exception):
    """Raised by ``prepare_data``: launch nothing this time."""


class Retry(Exception):
    """Raised by a receiver or ``run_action``: try again, ``after`` that many seconds if given.

    :raises ValueError: where it is made, if ``after`` is no time.
    """

    def __init__(self, message: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.after = None if after is None else seconds_or_zero(after)


class Discard(Exception):
    """Raised by a receiver or ``run_action``: never try this again."""


class Continue(Exception):
    """Raised by a receiver or ``run_action``: go on in a run of its own, as the same delivery.

    ``data`` replaces its data, ``after`` that many seconds if given. It uses up no attempt, and
    what this run launched is sent. Needs an outbox.

    :raises ValueError: where it is made, if ``after`` is no time.
    """

    def __init__(
        self, data: Mapping[str, Any] | None = None, after: float | timedelta | None = None
    ) -> None:
        super().__init__("The run goes on later.")
        self.data = data
        self.after = None if after is None else seconds_or_zero(after)
