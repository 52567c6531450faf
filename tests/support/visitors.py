"""Visitors: each opens a connection, asks one thing and notes what became of it."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPSConnection,
    IncompleteRead,
    RemoteDisconnected,
)

from tests.support.servers import answers
from tests.support.waiting import BOUND, wait_until

#: Orders under way at once, so that a queue in memory stays shorter than a stop's grace.
MOST_UNDER_WAY = 100


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where visitors come in: a port of this machine, or the unix socket at ``path``."""

    port: int = 0
    path: str | None = None
    #: Who signed the server's certificate; None: plain HTTP.
    authority: str | None = None
    root: str = ""

    def is_open(self) -> bool:
        return answers(self.path if self.path is not None else ("127.0.0.1", self.port))

    def url(self, path: str) -> str:
        """Return the absolute URL of ``path``, as a visitor writes it."""
        scheme = "https" if self.authority is not None else "http"
        port = f":{self.port}" if self.port else ""
        return f"{scheme}://127.0.0.1{port}{self.root}{path}"

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Return status and body, read to its end, of one GET on a connection of its own."""
        with closing(self._connection()) as connection:
            connection.request("GET", self.root + path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read().decode()

    def _connection(self) -> HTTPConnection:
        if self.authority is not None:
            context = ssl.create_default_context(cafile=self.authority)
            return HTTPSConnection("127.0.0.1", self.port, timeout=BOUND, context=context)
        if self.path is not None:
            return _UnixConnection(self.path)
        return HTTPConnection("127.0.0.1", self.port, timeout=BOUND)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("127.0.0.1", timeout=BOUND)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Visits:
    """What became of orders.

    ``accepted`` holds the ids that were answered with 200; ``reset`` is what broke without a
    whole answer, ``refused`` what found nobody listening, ``failed`` anything else.
    """

    accepted: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def order(self, door: Door, number: int) -> None:
        try:
            status, body = door.get(f"/order/{number}")
        except (ConnectionRefusedError, FileNotFoundError) as error:
            self.refused.append(repr(error))
        except (ConnectionError, RemoteDisconnected, IncompleteRead) as error:
            self.reset.append(repr(error))
        except (OSError, HTTPException) as error:
            self.failed.append(repr(error))
        else:
            if status == 200:
                self.accepted += json.loads(body)
            elif status == 502:  # So nginx tells of a connection that broke behind it.
                self.reset.append(body)
            else:
                self.failed.append(f"{status}: {body[:200]}")


def send_orders(door: Door, numbers: Iterable[int], *, visitors: int = 8) -> Visits:
    """Order each of ``numbers``, ``visitors`` at a time, and wait for the answers."""
    visits = Visits()
    for thread in _start(door, visits, iter(numbers), visitors):
        thread.join()
    return visits


@contextmanager
def ordering(
    door: Door, under_way: Callable[[Visits], int], *, visitors: int = 8
) -> Iterator[Visits]:
    """Keep ordering for as long as the block runs.

    ``under_way`` tells how many accepted orders have not been filled.
    """
    visits = Visits()
    stopping = threading.Event()

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            wait_until(lambda: stopping.is_set() or under_way(visits) < MOST_UNDER_WAY)
            if stopping.is_set() or visits.refused:
                return
            yield number

    threads = _start(door, visits, numbers(), visitors)
    try:
        yield visits
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def _start(
    door: Door, visits: Visits, numbers: Iterator[int], visitors: int
) -> list[threading.Thread]:
    turn = threading.Lock()

    def visit() -> None:
        while True:
            with turn:
                number = next(numbers, None)
            if number is None:
                return
            visits.order(door, number)

    threads = [threading.Thread(target=visit) for _ in range(visitors)]
    for thread in threads:
        thread.start()
    return threads
