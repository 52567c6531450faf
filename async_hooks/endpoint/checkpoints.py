"""Checkpoints of a run: it says how far it is, and learns whether it may go on."""

from __future__ import annotations

import json
import os
import time
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from ..envelope import Envelope
from ..errors import AsyncHooksError, DataError, Interrupted, OutboxUnavailable
from ..snapshot import json_of
from ..validation import seconds

if TYPE_CHECKING:  # It holds what is here.
    from .attempt import Attempt

#: Bytes of JSON that a cursor, or a progress, may be long.
_MAX_BYTES = 16 * 1024


class Interruption(StrEnum):
    """Why a run is interrupted."""

    REPLACED = "its delivery was cancelled, or another attempt has taken its place"
    UNWRITTEN = "the outbox could not be written"
    PAUSED = "its delivery is paused"
    STOPPING = "its process ends"
    SLICE = "its 'slice_seconds' are over"


#: After these, the database has nothing of what the run does since its last checkpoint.
_LOST = (Interruption.REPLACED, Interruption.UNWRITTEN)


class Checkpoints:
    """Those of one attempt. Without an outbox they move its deadline, and keep nothing."""

    def __init__(self, attempt: Attempt) -> None:
        #: Decided at a checkpoint, and then remembered: a run may swallow it.
        self.interruption: Interruption | None = None
        self._attempt = attempt
        self._state = attempt.state
        self._envelope = attempt.envelope
        self._store = attempt.state.store if attempt.envelope.lease is not None else None
        self._began = time.monotonic()
        #: JSON of where it goes on, None until that is asked for, and of what it showed last.
        self._cursor: str | None = None
        self._progress: str | None = None

    @property
    def cursor(self) -> Any:
        """Where the run goes on: what the last checkpoint said, None if there was none.

        :raises Interrupted: if the delivery is not this attempt's any more.
        """
        if self._cursor is None and self._store is not None:
            try:
                row = self._store.running(self._envelope)
            except OutboxUnavailable as error:
                self._interrupt(Interruption.UNWRITTEN, error)
            if row is None:
                self._interrupt(Interruption.REPLACED)
            self._cursor = row.cursor
        return None if self._cursor is None else json.loads(self._cursor)

    @property
    def is_cancelled(self) -> bool:
        """Whether the delivery was cancelled, or is another attempt's."""
        if self.interruption is Interruption.REPLACED:
            return True
        return self._store is not None and self._store.running(self._envelope) is None

    def show(self, done: Any, total: Any, text: str | None) -> None:
        """Note the progress, which this process' own thread writes, and move the deadline."""
        self._note(done, total, text)
        self._move_deadline()
        if self._store is not None:
            runs = self._state.process[os.getpid()].runs
            runs.show(self._envelope, str(self._progress), self._store.now())

    def reach(self, cursor: Any, done: Any, total: Any, text: str | None) -> None:
        """Keep that the run is at ``cursor``, with all that it did and launched so far.

        :raises Interrupted: if it is to end here.
        """
        reached = _small(cursor, "cursor")
        if (done, total, text) != (None, None, None):
            self._note(done, total, text)
        self._move_deadline()
        if self._store is None:
            return
        if self._state.session is not None and self._state.session.is_begun_elsewhere:
            raise AsyncHooksError(
                "'checkpoint' commits the session, and a savepoint or 'session.begin()' is open. "
                "Leave its block first, and end a step by the checkpoint, as by session.commit()."
            )
        before = self.interruption
        if before is not None and before in _LOST:  # A step before this one is missing.
            self._interrupt(before)
        try:
            is_paused = self._write(reached, self._attempt.take_launches())
        except OutboxUnavailable as error:
            self._interrupt(Interruption.UNWRITTEN, error)
        if is_paused is None:
            self._interrupt(Interruption.REPLACED)
        self._cursor = reached
        reason = before or self._reason_to_end(is_paused=is_paused)
        if reason is not None:
            self._interrupt(reason)

    def _write(self, cursor: str, launches: list[Envelope]) -> bool | None:
        assert self._store is not None  # noqa: S101 - asked by who comes here
        write = partial(self._store.checkpoint, self._envelope, cursor, self._progress, launches)
        if self._state.session is not None:
            return self._state.session.commit_with(lambda within: write(within=within))
        is_paused = write()
        if launches and is_paused is not None and self._state.relay is not None:
            self._state.relay.wake()
        return is_paused

    def _reason_to_end(self, *, is_paused: bool) -> Interruption | None:
        if is_paused:
            return Interruption.PAUSED
        if self._state.process[os.getpid()].is_stopping:
            return Interruption.STOPPING
        limit = getattr(self._attempt.task, "slice_seconds", None)
        age = time.monotonic() - self._began
        return Interruption.SLICE if limit is not None and age >= seconds(limit) else None

    def _interrupt(self, why: Interruption, error: Exception | None = None) -> NoReturn:
        self.interruption = why
        if why in _LOST and self._state.session is not None:
            self._state.session.rollback()
        raise Interrupted(f"The run is interrupted: {why}.") from error

    def _note(self, done: Any, total: Any, text: str | None) -> None:
        self._progress = _small({"done": done, "total": total, "text": text}, "progress")

    def _move_deadline(self) -> None:
        attempt = self._attempt
        if attempt.slot is not None:
            attempt.slot.until = time.monotonic() + attempt.timeout
        self._state.process[os.getpid()].runs.move_deadline(self._envelope, attempt.timeout)


def _small(value: Any, name: str) -> str:
    text = json_of(value, name)
    if len(text) > _MAX_BYTES:
        raise DataError(
            f"{name!r} is {len(text)} bytes of JSON; {_MAX_BYTES} are allowed. "
            "Store it and pass its id instead."
        )
    return text
