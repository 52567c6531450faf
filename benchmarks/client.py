"""The load client: HTTP/1.1 on kept raw sockets, in one thread, the same for all systems."""

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

    path: str
    latency: int
    started_at: int
    ended_at: int

    @property
    def hand_over(self) -> int:
        return self.ended_at - self.started_at


class Connection:
    """One kept connection with at most one request on it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.socket = _connected(port)
        self._received = b""
        self._path = ""
        self._asked_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def get(self, path: str) -> Sample:
        """Ask for ``path`` and wait for the answer."""
        self.ask(path)
        while (sample := self.read()) is None:
            pass
        return sample

    def renew(self) -> None:
        self.socket.close()
        self.socket = _connected(self._port)

    def ask(self, path: str) -> None:
        self._path, self._received = path, b""
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode()
        self._asked_at = time.monotonic_ns()
        self.socket.sendall(request)

    def read(self) -> Sample | None:
        """Receive what has come; return the sample when the answer is complete."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError(f"The server closed the connection on {self._path!r}.")
        self._received += chunk
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        headers = _headers(head)
        if len(body) < int(headers["content-length"]):
            return None
        latency = time.monotonic_ns() - self._asked_at
        started, ended = headers[HAND_OVER_HEADER.lower()].split()
        return Sample(self._path, latency, int(started), int(ended))


def paced(port: int, paths: Iterable[str], *, pause: float) -> Iterator[Sample]:
    """Ask for one path after the other, each ``pause`` seconds after the last answer."""
    with Connection(port) as connection:
        for path in paths:
            time.sleep(pause)
            yield connection.get(path)


def closed_loop(
    port: int, paths: Iterable[str], *, connections: int, kept: bool = True
) -> list[Sample]:
    """Ask for all paths on so many connections, each asking on as soon as it was answered.

    Connections that are not ``kept`` are made anew for each request, as by as many visitors: a
    kept one stays with the process that accepted it, and one process may have accepted them all.
    """
    waiting, samples = iter(paths), []
    with ExitStack() as opened, selectors.DefaultSelector() as selector:
        crew = [opened.enter_context(Connection(port)) for _ in range(connections)]
        for connection, path in zip(crew, waiting, strict=False):
            connection.ask(path)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while selector.get_map():
            ready = selector.select(_PATIENCE)
            if not ready:
                raise TimeoutError(f"The server gave no answer for {_PATIENCE:g} seconds.")
            for key, _ in ready:
                connection = key.data
                sample = connection.read()
                if sample is None:
                    continue
                samples.append(sample)
                path = next(waiting, "")
                if kept and path:
                    connection.ask(path)
                    continue
                selector.unregister(connection.socket)
                if path:
                    connection.renew()
                    connection.ask(path)
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
    return samples


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _headers(head: bytes) -> dict[str, str]:
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split()[1] != "200":
        raise RuntimeError(f"The server answered {status!r}.")
    pairs = (line.partition(":") for line in lines)
    return {name.lower(): value.strip() for name, _, value in pairs}
