"""The load client: HTTP/1.1 on raw sockets, in one thread, the same for all systems."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import NamedTuple, Self

from .app import HAND_OVER_HEADER

#: Seconds after which an answer is given up.
_PATIENCE = 30.0


class Sample(NamedTuple):
    """One request: what the client waited, and from when to when the view handed over (ns)."""

    latency: int
    started_at: int
    ended_at: int

    @property
    def hand_over(self) -> int:
        return self.ended_at - self.started_at


class Connection:
    """One connection with at most one request on it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._received = b""
        self._sent_at = 0
        self.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self._port), _PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path: str) -> Sample:
        """Ask for ``path`` and wait for the answer."""
        self.send(path)
        while (sample := self.receive()) is None:
            pass
        return sample

    def send(self, path: str) -> None:
        self._received = b""
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode()
        self._sent_at = time.monotonic_ns()
        self.socket.sendall(request)

    def receive(self) -> Sample | None:
        """Receive what has come; return the sample when the answer is complete."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("The server closed the connection.")
        self._received += chunk
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        headers = _headers(head)
        if len(body) < int(headers["content-length"]):
            return None
        latency = time.monotonic_ns() - self._sent_at
        started, ended = headers[HAND_OVER_HEADER.lower()].split()
        return Sample(latency, int(started), int(ended))


def paced(port: int, paths: Iterable[str], *, pause: float) -> Iterator[Sample]:
    """Ask for one path after the other, each ``pause`` seconds after the last answer."""
    with Connection(port) as connection:
        for path in paths:
            time.sleep(pause)
            yield connection.get(path)


def closed_loop(
    port: int, paths: Iterable[str], *, connections: int, keep_alive: bool = True
) -> list[Sample]:
    """Ask for all paths on ``connections``, each asking on as soon as it was answered.

    Without ``keep_alive``, each request has a connection of its own, as those of as many visitors:
    otherwise one stays with the process that accepted it, and one process may have accepted all.
    """
    waiting, samples = iter(paths), []
    with ExitStack() as opened, selectors.DefaultSelector() as selector:
        pool = [opened.enter_context(Connection(port)) for _ in range(connections)]
        for connection, path in zip(pool, waiting, strict=False):
            connection.send(path)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while selector.get_map():
            ready = selector.select(_PATIENCE)
            if not ready:
                raise TimeoutError(f"The server gave no answer for {_PATIENCE:g} seconds.")
            for key, _ in ready:
                connection = key.data
                if (sample := connection.receive()) is None:
                    continue
                samples.append(sample)
                path = next(waiting, "")
                if keep_alive and path:
                    connection.send(path)
                    continue
                selector.unregister(connection.socket)
                if path:
                    connection.socket.close()
                    connection.connect()
                    connection.send(path)
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
    return samples


def _headers(head: bytes) -> dict[str, str]:
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split()[1] != "200":
        raise RuntimeError(f"The server answered {status!r}.")
    pairs = (line.partition(":") for line in lines)
    return {name.lower(): value.strip() for name, _, value in pairs}
