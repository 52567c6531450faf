"""Building envelopes: what a launch knows, the visitor and the data become one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..context import origin
from ..current import RunningTask
from ..envelope import Envelope, new_ids
from ..errors import ConfigError, DataError
from ..limits import hold_of, uniqueness_of
from ..receivers import refuse_shared_names
from ..snapshot import plain, snapshot, snapshots
from ..state import State
from ..task import AsyncTask, LaunchOptions
from ..validation import is_text, seconds_or_zero


class Builder:
    """Builds the envelopes of one launch of ``task``, or of many at once, for ``user``.

    What they share is captured here, once; :meth:`build` adds what is each one's own.

    :raises ConfigError: for options that exclude each other, or too long a name.
    :raises DataError: for a key that can't be kept.
    :raises DepthExceeded: if the run ``attempt`` may launch no more.
    """

    def __init__(
        self,
        state: State,
        attempt: RunningTask | None,
        task: type[AsyncTask],
        user: Any,
        options: LaunchOptions = LaunchOptions(),  # noqa: B008 - a value
    ) -> None:
        if state.store is None and not state.is_reachable():
            raise ConfigError(
                "'ASYNC_HOOKS_URL' is not set, no request has shown yet where this app listens, "
                "and 'ASYNC_HOOKS_FALLBACK' is None. Set one of them."
            )
        refuse_shared_names(state, task)
        if attempt is not None:
            attempt.count_launch(task)
        max_bytes = state.config.max_bytes
        visitor, carried = plain(user, "user"), state.context.capture(state.app, max_bytes)
        shared = Envelope(
            id="",
            task=task.name,
            body="",
            depth=attempt.envelope.depth + 1 if attempt is not None else 0,
            user=visitor,
            carried=carried,
            origin=origin(state.app),
            priority=task.priority if options.priority is None else options.priority,
        )
        # What travels beside the data counts as well: the endpoint limits the whole.
        beside = len(carried) + (len(str(visitor)) if visitor is not None else 0)
        self._max_bytes = max_bytes - beside
        self._task = task
        self._asks_for_key = self._asks_for_ref = self._asks_for_turn = False
        if state.store is not None:
            shared = self._with_options(shared, options, state)
        self._shared = shared[3:]

    def build(self, data: Mapping[str, Any], envelope_id: str) -> Envelope:
        """Return the envelope that carries ``data``.

        :raises DataError: if that, its unique key or its ref can't travel.
        """
        body = snapshot(data, max_bytes=self._max_bytes)
        return self._with_own(Envelope(envelope_id, self._task.name, body, *self._shared))

    def build_many(self, items: Sequence[Mapping[str, Any]]) -> list[Envelope]:
        """Return the envelopes that carry ``items``, in their order.

        :raises DataError: as above, naming the index of the item.
        """
        bodies = snapshots(items, max_bytes=self._max_bytes)
        name, shared = self._task.name, self._shared
        envelopes = [
            Envelope(envelope_id, name, body, *shared)
            for envelope_id, body in zip(new_ids(len(bodies)), bodies, strict=True)
        ]
        if self._asks_for_key or self._asks_for_ref or self._asks_for_turn:
            for index, envelope in enumerate(envelopes):
                try:
                    envelopes[index] = self._with_own(envelope)
                except DataError as error:
                    raise DataError(f"Item {index}: {error}") from error
                except Exception as error:  # The user's.
                    error.add_note(f"It was raised for item {index} of dispatch_many.")
                    raise
        return envelopes

    def _with_own(self, envelope: Envelope) -> Envelope:
        """Return ``envelope`` with what its task makes of its data."""
        task = self._task
        if self._asks_for_key:
            key = task().unique_key(envelope.data)
            if key is not None:
                envelope = envelope._replace(**self._uniqueness_of(key, envelope.run_at))
        if self._asks_for_turn:
            envelope = envelope._replace(**hold_of(task, envelope.data))
        if self._asks_for_ref:
            ref = self._task().ref(envelope.data)
            if ref is not None and not is_text(ref, 255):
                raise DataError(
                    f"The ref of task {self._task.name!r} is no text of up to 255 characters."
                )
            envelope = envelope._replace(ref=ref)
        return envelope

    def _with_options(self, shared: Envelope, options: LaunchOptions, state: State) -> Envelope:
        """Return ``shared`` with what an outbox keeps of it."""
        task = self._task
        if not is_text(task.name, 255):
            raise ConfigError(f"{task.name!r}: an outbox keeps names of up to 255 characters.")
        delay, run_at = options.delay or task.delay, None
        if delay:
            assert state.store is not None  # noqa: S101 - asked before
            run_at = state.store.now() + seconds_or_zero(delay)
        if options.run_at is not None:
            if options.delay:
                raise ConfigError(f"{task.name!r}: 'delay' and 'run_at' exclude each other.")
            run_at = options.run_at.timestamp()
        key = options.unique_key
        self._asks_for_key = key is None and task.unique_key is not AsyncTask.unique_key
        self._asks_for_ref = task.ref is not AsyncTask.ref
        self._asks_for_turn = task.limit is not None or task.rate is not None
        return shared._replace(
            queue=task.queue if options.queue is None else options.queue,
            run_at=run_at,
            finishes=task.finish is not AsyncTask.finish,
            **({} if key is None else self._uniqueness_of(key, run_at)),
        )

    def _uniqueness_of(self, key: str, run_at: float | None) -> dict[str, Any]:
        """Return the members of an envelope by which a launch is the only one with ``key``."""
        members = uniqueness_of(self._task, key)
        if members["debounce"] is not None and run_at is not None:
            raise ConfigError(
                f"{self._task.name!r}: a time to run and 'debounce' exclude each other."
            )
        return members
