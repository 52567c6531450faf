"""The receivers' notebook: a file in which each run of a receiver leaves when it started.

Where a run takes time, a second file has when it ended.

A file, because receivers run in web processes, in their threads and in workers alike.
"""

from __future__ import annotations

import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .environment import folder, task_seconds

_STARTS, _ENDS = "notes", "notes-of-ends"

_RECORD = struct.Struct("=qq")


class Note(NamedTuple):
    """A launch's number and when its receiver started, in nanoseconds of CLOCK_MONOTONIC.

    In the notebook of ends, when it ended.
    """

    number: int
    started_at: int


def note(number: int) -> None:
    """Write down that the receiver of launch ``number`` starts now: a receiver's whole work.

    If it is to take time, it sleeps, and writes down when it ended.
    """
    _append(_STARTS, number)
    if seconds := _seconds():
        time.sleep(seconds)
        _append(_ENDS, number)


def _append(file: str, number: int) -> None:
    # Linux has one CLOCK_MONOTONIC for all processes; appends this short are never torn.
    os.write(_descriptor(file), _RECORD.pack(number, time.monotonic_ns()))


@cache
def _descriptor(file: str) -> int:
    return os.open(folder() / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@cache
def _seconds() -> float:
    return task_seconds()


class Notebook:
    """What the receivers of one server have written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def count(self) -> int:
        return self.path.stat().st_size // _RECORD.size

    def read(self) -> list[Note]:
        return [Note(*fields) for fields in _RECORD.iter_unpack(self.path.read_bytes())]

    def wait(self, total: int, *, patience: float) -> None:
        """Return when ``total`` notes are there, or none came for ``patience`` seconds."""
        seen, seen_at = -1, 0.0
        while (count := self.count) < total:
            now = time.monotonic()
            if count > seen:
                seen, seen_at = count, now
            elif now - seen_at > patience:
                return
            time.sleep(0.01)


def notebooks(folder: Path) -> tuple[Notebook, Notebook]:
    """Return that of starts and that of ends."""
    return Notebook(folder / _STARTS), Notebook(folder / _ENDS)
