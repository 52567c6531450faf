"""The envelope: one piece of deferred work, as a frozen value."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import count
from typing import Any, NamedTuple

from .host.per_process import PerProcess


class Origin(NamedTuple):
    """The triggering request as the app saw and trusted it, so that ``url_for`` comes out right."""

    scheme: str
    host: str
    root: str


class Envelope(NamedTuple):
    """One piece of deferred work. Its ``id`` stays the same over all attempts.

    ``body`` and ``carried`` are JSON texts: a snapshot that no later change can reach.
    ``user`` is what the identity's ``capture`` returned, None for an anonymous visitor.
    ``parent_id`` and ``receiver`` are set on the children of a fan-out only. ``budget`` is how
    many envelopes its run, and all that follows from it, may launch. ``lease`` names the claim of
    an outbox that this attempt belongs to; ``is_awaited`` says that its delivery counts as
    unfinished as long as one of its children is.
    """

    id: str
    task: str
    body: str
    attempt: int = 1
    depth: int = 0
    budget: int = 0
    user: Any = None
    carried: str = "{}"
    origin: Origin = Origin("http", "localhost", "")
    parent_id: str | None = None
    receiver: str | None = None
    priority: int = 10
    lease: str | None = None
    is_awaited: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """The task's data, decoded anew at each call."""
        data: dict[str, Any] = json.loads(self.body)
        return data

    def for_receiver(self, name: str) -> Envelope:
        """The child that reaches only the receiver ``name``.

        Its id follows from the parent's, so splitting twice yields the same children.
        """
        digest = hashlib.sha256(f"{self.id}:{name}".encode())
        child_id = digest.hexdigest()[:32]
        return self._replace(id=child_id, parent_id=self.id, receiver=name, attempt=1, lease=None)


class _Ids:
    """A process's ids: 80 random bits and a counter.

    Random bits for each id would cost a system call that gives up the GIL, in the request.
    """

    def __init__(self) -> None:
        self.prefix = os.urandom(10).hex()
        self.counter = count()


_ids = PerProcess(_Ids)


def new_id() -> str:
    """Return 32 hexadecimal digits that no other call returns, in any process."""
    ids = _ids.get()
    return f"{ids.prefix}{next(ids.counter):012x}"
