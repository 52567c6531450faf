"""A deployment of one system: what its processes are told, and what its receivers record.

They record it in files, because receivers run in web processes, in their threads and in workers
alike.
"""

from __future__ import annotations

import json
import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

_VARIABLE = "BENCHMARK_DEPLOYMENT"
_STARTS, _ENDS = "starts", "ends"
_RECORD = struct.Struct("=qq")


class Deployment(NamedTuple):
    """What a server leaves to the next one in its place."""

    #: The system's name.
    system: str
    #: No other deployment has it, so nothing that an earlier one left belongs to this one.
    name: str
    folder: str
    port: int
    #: Empty if it has no database.
    database_url: str
    #: How long each task sleeps.
    task_seconds: float

    def environ(self) -> dict[str, str]:
        """Return the environment of its processes."""
        # A proxy would be asked for 127.0.0.1 too.
        kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        return {**kept, _VARIABLE: json.dumps(self)}


@cache
def current() -> Deployment:
    """Return the deployment that this process belongs to."""
    return Deployment(*json.loads(os.environ[_VARIABLE]))


class Event(NamedTuple):
    """When the receiver of launch ``number`` started or ended, in ns of CLOCK_MONOTONIC."""

    number: int
    at: int


class EventLog:
    """Read what the receivers of one deployment have recorded so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def count(self) -> int:
        return self.path.stat().st_size // _RECORD.size

    def read(self) -> list[Event]:
        return [Event(*fields) for fields in _RECORD.iter_unpack(self.path.read_bytes())]

    def wait(self, total: int, *, patience: float) -> None:
        """Return when ``total`` events are there, or none came for ``patience`` seconds."""
        seen, seen_at = -1, 0.0
        while (count := self.count) < total:
            now = time.monotonic()
            if count > seen:
                seen, seen_at = count, now
            elif now - seen_at > patience:
                return
            time.sleep(0.01)


def event_logs(deployment: Deployment) -> tuple[EventLog, EventLog]:
    """Return the log of starts and that of ends; tasks that take no time record no end."""
    folder = Path(deployment.folder)
    return EventLog(folder / _STARTS), EventLog(folder / _ENDS)


def run(number: int) -> None:
    """Record the start of launch ``number``'s receiver; if tasks take time, sleep, record the end.

    This is a receiver's whole work.
    """
    _append(_STARTS, number)
    if seconds := current().task_seconds:
        time.sleep(seconds)
        _append(_ENDS, number)


def _append(file: str, number: int) -> None:
    # Linux has one CLOCK_MONOTONIC for all processes; appends this short are never torn.
    os.write(_descriptor(file), _RECORD.pack(number, time.monotonic_ns()))


@cache
def _descriptor(file: str) -> int:
    path = Path(current().folder) / file
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
