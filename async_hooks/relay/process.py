"""What one process has in hand of an outbox: what it holds, what runs in it, what ended in it."""

from __future__ import annotations

import os
import threading
import time
from functools import cached_property
from typing import NamedTuple

from ..envelope import Envelope, new_id
from ..host.liveness import ProcessLock
from ..verdict import Verdict


class Held:
    """A delivery that this process has claimed. Times are the monotonic clock's.

    ``since`` is when it was claimed, None as long as it is not in the table; ``set_out_at`` when
    a sender took it, None while it waits.
    """

    __slots__ = ("envelope", "set_out_at", "since")

    def __init__(self, envelope: Envelope, *, is_added: bool = True) -> None:
        self.envelope = envelope
        self.since = time.monotonic() if is_added else None
        self.set_out_at: float | None = None


class Running(NamedTuple):
    """A run in this process, and when it began on the monotonic clock."""

    envelope: Envelope
    since: float


class Ended(NamedTuple):
    """A run of this process that is over, and that its relay may not have settled yet."""

    envelope: Envelope
    verdict: Verdict


#: A delivery's id and the lease of one claim: of one delivery, several attempts may run here.
Key = tuple[str, str | None]


class InHand:
    """This process, as the outbox knows it, and what it has in hand.

    ``held`` is what its relay claimed and has not settled, by id; ``running`` what runs here now,
    and ``ended`` what ran here and may still wait for the relay, here or elsewhere, that sent it,
    by claim. Any thread may change them: each change is a single step of a dict.
    """

    def __init__(self, name: str) -> None:
        self.relay_id = new_id()
        self.pid = os.getpid()
        self._name = name
        self.held: dict[str, Held] = {}
        self.running: dict[Key, Running] = {}
        self.ended: dict[Key, Ended] = {}
        #: Set when a relay beats for this process, or is about to: only then does it answer for
        #: what it runs.
        self.is_beating = threading.Event()

    @cached_property
    def liveness(self) -> ProcessLock:
        """This process' lifeline, held from the moment that a relay first asks for it."""
        return ProcessLock(self._name, self.relay_id)

    @staticmethod
    def key(envelope: Envelope) -> Key:
        return envelope.id, envelope.lease

    def runs(self, envelope: Envelope) -> bool:
        """Tell whether this very attempt runs here."""
        return self.key(envelope) in self.running

    def note_added(self, delivery_id: str) -> None:
        """Note that what was to be added is in the table."""
        held = self.held.get(delivery_id)
        if held is not None:
            held.since = time.monotonic()

    def has_in_hand(self, envelope: Envelope) -> bool:
        """Tell whether somebody here holds or runs what this claim is of."""
        return envelope.id in self.held or self.runs(envelope)

    def ended_of(self, envelope: Envelope) -> Ended | None:
        return self.ended.get(self.key(envelope))

    def abandon(self) -> None:
        """In a forked child: let go of the lifeline, which is its parent's."""
        if "lifeline" in self.__dict__:
            self.liveness.abandon()
