"""The receivers' notebook: a file in which each run of a receiver leaves when it started.

A file, because receivers run in web processes, in their threads and in workers alike.
"""

from __future__ import annotations

import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .environment import folder

_FILE = "notes"

_RECORD = struct.Struct("=qq")


class Note(NamedTuple):
    """A launch's number and when its receiver started, in nanoseconds of CLOCK_MONOTONIC."""

    number: int
    started_at: int


def note(number: int) -> None:
    """Write down that the receiver of launch ``number`` starts now: a receiver's whole work."""
    # Linux has one CLOCK_MONOTONIC for all processes; appends this short are never torn.
    os.write(_descriptor(), _RECORD.pack(number, time.monotonic_ns()))


@cache
def _descriptor() -> int:
    return os.open(folder() / _FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Notebook:
    """What the receivers of one server have written so far."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _FILE
        self.path.touch()

    def read(self) -> list[Note]:
        return [Note(*fields) for fields in _RECORD.iter_unpack(self.path.read_bytes())]

    def wait(self, total: int, *, patience: float) -> None:
        """Return when ``total`` notes are there, or none came for ``patience`` seconds."""
        seen, seen_at = -1, 0.0
        while (count := self.path.stat().st_size // _RECORD.size) < total:
            now = time.monotonic()
            if count > seen:
                seen, seen_at = count, now
            elif now - seen_at > patience:
                return
            time.sleep(0.01)
