"""The envelope: one piece of deferred work, as a frozen value."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .host.per_process import PerProcess

#: In a receiver's place: the envelope tells its task that a delivery was discarded, or that a
#: launch is over.
DISCARDED, FINISHED = "#discarded", "#finished"

#: Hexadecimal digits of an id that are its time: milliseconds since the epoch, 48 bits.
_TIME = 12


class Origin(NamedTuple):
    """The triggering request as the app saw and trusted it, so that ``url_for`` comes out right."""

    scheme: str
    host: str
    root: str


class Hold(NamedTuple):
    """Deliveries that wait for their turn together: those with ``key`` in a ``column``.

    With a rate and a limit, it is by the rate that they take turns.
    """

    column: str
    key: str


class Envelope(NamedTuple):
    """One piece of deferred work. Its ``id`` stays the same over all attempts.

    ``body`` and ``carried`` are JSON texts: a snapshot that no later change can reach.
    ``user`` is what the identity's ``capture`` returned, None for an anonymous visitor.
    ``parent_id``, ``position`` and ``receiver`` are set on the children of a fan-out only; what
    tells the task of an end has that, :data:`DISCARDED` or :data:`FINISHED`, for its receiver, and
    ``root_id`` says of which launch. ``queue``, ``run_at`` (seconds since the epoch, None for at
    once), ``unique_key`` and ``ref`` are for an outbox; ``lease`` names the claim of an outbox that
    this attempt belongs to; ``finishes`` says that the task is to be told when it is over.

    A ``waiting_key`` is a unique key that is free once the delivery is claimed; ``unique_for`` are
    seconds that one stays taken beyond the end. ``debounce`` are the seconds that a launch waits
    for newer ones, and that all of them wait at most. Who has a ``limit_key`` or a ``rate_key``
    waits for its turn.
    """

    id: str
    task: str
    body: str
    attempt: int = 1
    depth: int = 0
    user: Any = None
    carried: str = "{}"
    origin: Origin = Origin("http", "localhost", "")
    parent_id: str | None = None
    root_id: str | None = None
    position: int | None = None
    receiver: str | None = None
    priority: int = 10
    queue: str = "default"
    run_at: float | None = None
    unique_key: str | None = None
    ref: str | None = None
    lease: str | None = None
    finishes: bool = False
    waiting_key: str | None = None
    unique_for: float | None = None
    debounce: tuple[float, float] | None = None
    limit_key: str | None = None
    rate_key: str | None = None

    @property
    def hold(self) -> Hold | None:
        """What holds it until its turn comes, if anything does."""
        if self.rate_key is not None:
            return Hold("rate_key", self.rate_key)
        return None if self.limit_key is None else Hold("limit_key", self.limit_key)

    @property
    def data(self) -> dict[str, Any]:
        """The task's data, decoded anew at each call."""
        data: dict[str, Any] = json.loads(self.body)
        return data

    @property
    def tells_of_an_end(self) -> bool:
        """Whether it only tells its task of an end."""
        return self.receiver in (DISCARDED, FINISHED)

    def for_receiver(self, name: str, position: int = 0) -> Envelope:
        """Return the child that reaches only the receiver ``name``, the ``position``-th.

        Its id follows from the parent's, so splitting twice yields the same children; it sorts
        beside its parent's.
        """
        digest = hashlib.sha256(f"{self.id}:{name}".encode()).hexdigest()
        return self._replace(
            id=self.id[:_TIME] + digest[: 32 - _TIME],
            parent_id=self.id,
            position=position,
            receiver=name,
            attempt=1,
            run_at=None,
            unique_key=None,
            waiting_key=None,
            unique_for=None,
            debounce=None,
            lease=None,
            finishes=False,
        )

    def for_finish(self) -> Envelope:
        """Return what tells the task that this launch is over."""
        return self._replace(
            id=new_id(),
            root_id=self.id,
            receiver=FINISHED,
            attempt=1,
            run_at=None,
            unique_key=None,
            waiting_key=None,
            unique_for=None,
            debounce=None,
            limit_key=None,
            rate_key=None,
            ref=None,
            lease=None,
            finishes=False,
        )


def holds_of(envelopes: Iterable[Envelope]) -> frozenset[Hold]:
    """Return what holds any of ``envelopes``."""
    return frozenset(each.hold for each in envelopes if each.hold is not None)


class Ids:
    """Makes the ids of one process: time, a counter, and bits that no other process has.

    They sort in the order in which they were made, also while the clock is set back.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._latest = 0
        self._counter = itertools.count(1)  # Threads get different numbers without a lock.
        # Random bits for each id would cost a system call that gives up the GIL, in the request.
        self._process = os.urandom(6).hex()

    def next(self) -> str:
        [made] = self.many(1)
        return made

    def many(self, count: int) -> list[str]:
        milliseconds = int(self._clock() * 1000)
        if milliseconds > self._latest:
            self._latest = milliseconds
        latest, process = f"{self._latest:0{_TIME}x}", self._process
        numbers = itertools.islice(self._counter, count)
        return [f"{latest}{number & 0xFFFFFFFF:08x}{process}" for number in numbers]


_ids = PerProcess(Ids)


def new_id() -> str:
    """Return 32 hexadecimal digits that no other call returns, in any process."""
    return _ids[os.getpid()].next()


def new_ids(count: int) -> list[str]:
    """Return as many of them, in order."""
    return _ids[os.getpid()].many(count)
