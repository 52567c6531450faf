"""What one process has in hand of an outbox: what it holds, what runs in it, what ended in it."""

from __future__ import annotations

import os
import threading
import time
from functools import cached_property
from typing import NamedTuple

from .envelope import Envelope, new_id
from .lifeline import Lifeline
from .verdict import Verdict


class Held:
    """A delivery that this process has claimed. Times are the monotonic clock's.

    ``is_ready`` says that its row is there and its response is gone; ``set_out_at`` is when a
    sender took it, None while it waits.
    """

    __slots__ = ("envelope", "is_ready", "set_out_at", "since")

    def __init__(self, envelope: Envelope, *, is_ready: bool) -> None:
        self.envelope = envelope
        self.is_ready = is_ready
        self.since = time.monotonic()
        self.set_out_at: float | None = None


class Running(NamedTuple):
    """A run in this process, and when it began on the monotonic clock."""

    envelope: Envelope
    since: float


class Ended(NamedTuple):
    """A run of this process that is over, and that its relay may not have settled yet."""

    envelope: Envelope
    verdict: Verdict


class InHand:
    """This process, as the outbox knows it, and what it has in hand, by delivery id.

    ``held`` is what its relay claimed and has not settled, ``running`` what runs here now,
    ``ended`` what ran here and may still wait for the relay, here or elsewhere, that sent it.
    Any thread may change them: each change is a single step of a dict.
    """

    def __init__(self, name: str) -> None:
        self.relay_id = new_id()
        self.pid = os.getpid()
        self._name = name
        self.held: dict[str, Held] = {}
        self.running: dict[str, Running] = {}
        self.ended: dict[str, Ended] = {}
        #: Set while a relay beats for this process: only then does it answer for what it runs.
        self.is_beating = threading.Event()

    @cached_property
    def lifeline(self) -> Lifeline:
        """This process' lifeline, held from the moment that a relay first asks for it."""
        return Lifeline(self._name, self.relay_id)
