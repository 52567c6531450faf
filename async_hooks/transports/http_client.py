"""The lean client, for plain HTTP: requests takes some forty times its processor time a POST."""

from __future__ import annotations

import socket
import time
from base64 import b64encode
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from ..config import Config
from ..errors import ConnectionBroken, TransportError
from ..signing import CONTENT_TYPE
from .client import CONNECT_TIMEOUT, IDLE, Answer, broken, reason, timed_out, unreachable

#: Bytes that the head of an answer may have; ours has some hundred.
_HEAD = 64 * 1024

#: POSTs on one connection. It leads to one worker process; the next may find a less busy one.
_POSTS = 32


class LeanClient:
    """HTTP/1.1 on one kept connection, TCP or unix socket.

    The whole head of the answer must come within the timeout. It understands what a WSGI server
    says to our endpoint: a head and no body. Where a body follows, the connection is dropped
    rather than the body read.
    """

    def __init__(self, url: str, config: Config) -> None:
        parts = urlsplit(url)
        self._url = url
        self._unix = unquote(parts.netloc) if parts.scheme == "http+unix" else None
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._head = _request_head(parts.path, "localhost" if self._unix else parts.netloc, config)
        self._socket: socket.socket | None = None
        self._used_at = 0.0
        self._posts = 0
        self._is_cut = False

    def cut(self) -> None:
        self._is_cut = True
        connection = self._socket
        if connection is not None:
            with suppress(OSError):  # It is not connected yet, or no longer.
                connection.shutdown(socket.SHUT_RDWR)

    def post(self, body: bytes, timeout: float) -> Answer:
        deadline = time.monotonic() + timeout
        request = self._head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        connection = self._send(request, deadline)
        try:
            answer, reusable = _receive(connection, deadline)
        except OSError as error:
            self._drop()
            raise self._no_verdict(error, timeout) from error
        except TransportError:
            self._drop()
            raise
        self._posts += 1
        if reusable and answer.status != 503 and self._posts % _POSTS:
            self._used_at = time.monotonic()
        else:
            self._drop()
        return answer

    def _send(self, request: bytes, deadline: float) -> socket.socket:
        """Put the request on a live connection and return that."""
        kept = self._kept()
        try:
            connection = kept or self._connect(deadline)
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            if self._is_cut:
                raise ConnectionAbortedError("cut")
            sent = connection.send(request)
        except OSError as error:
            self._drop()
            if kept is not None and not self._is_cut:
                # The server closed it under us; nothing of this POST went out.
                return self._send(request, deadline)
            raise unreachable(self._url, error) from error
        try:
            if sent < len(request):  # Even sending nothing fails where the server has closed.
                connection.sendall(request[sent:])
        except OSError as error:
            self._drop()
            raise ConnectionBroken(
                f"{self._url!r} did not take the whole token ({reason(error)}). "
                "Does it limit the size of requests?"
            ) from error
        return connection

    def _kept(self) -> socket.socket | None:
        """Return the kept connection if it is still good."""
        if self._socket is None:
            return None
        if time.monotonic() - self._used_at < IDLE and _is_silent(self._socket):
            return self._socket
        self._drop()
        return None

    def _connect(self, deadline: float) -> socket.socket:
        timeout = max(0.001, min(CONNECT_TIMEOUT, deadline - time.monotonic()))
        if self._unix is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout)
            self._socket = connection
            connection.connect(self._unix)
        else:
            connection = socket.create_connection((self._host, self._port), timeout)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = connection
        return connection

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        self._drop()  # The thread that owned it has ended.

    def _no_verdict(self, error: OSError, timeout: float) -> TransportError:
        if isinstance(error, TimeoutError):
            return timed_out(self._url, timeout)
        return broken(self._url, error)


def _request_head(path: str, host: str, config: Config) -> bytes:
    headers = {"Host": host, "Content-Type": CONTENT_TYPE, "Connection": "keep-alive"}
    if isinstance(config.auth, tuple):
        pair = b64encode(":".join(config.auth).encode()).decode()
        headers["Authorization"] = f"Basic {pair}"
    lines = [f"{name}: {value}" for name, value in {**headers, **config.headers}.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, ""]).encode("latin-1")


def _receive(connection: socket.socket, deadline: float) -> tuple[Answer, bool]:
    """Read the head of an answer; tell whether the connection can be used again."""
    received = b""
    while b"\r\n\r\n" not in received:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        if len(received) > _HEAD:
            raise TransportError("The answer's head has no end. What listens there?")
        connection.settimeout(remaining)
        chunk = connection.recv(_HEAD)
        if not chunk:
            raise ConnectionResetError("closed without an answer")
        received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    answer = _parse(head.decode("latin-1"))
    bodiless = answer.status == 204 or answer.headers.get("content-length") == "0"
    # HTTP/1.1 keeps a connection by default; uWSGI closes it all the same, and does not say so.
    keeps = answer.headers.get("connection", "").lower() == "keep-alive"
    return answer, bodiless and keeps and not rest


def _parse(head: str) -> Answer:
    status_line, *lines = head.split("\r\n")
    version, _, rest = status_line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdigit():
        raise TransportError("The answer is not HTTP. What listens there?")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Answer(int(code), headers)


def _is_silent(connection: socket.socket) -> bool:
    """Tell whether an idle connection has nothing to say: an end, or bytes nobody asked for."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
