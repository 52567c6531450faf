"""The lean client, for plain HTTP: requests takes 11 times its processor time a POST."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from ..config import Config
from ..endpoint.fresh_request import sent_headers
from ..errors import TransportError
from ..signing import CONTENT_TYPE
from .client import CONNECT_TIMEOUT, IDLE, Answer, broken, timed_out, unreachable

#: Bytes that the head of an answer may have; ours has some hundred.
_HEAD = 64 * 1024

#: POSTs on one connection. It leads to one worker process; the next may find a less busy one.
_POSTS = 32

#: Seconds of silence after which who waits for an answer looks whether it still should.
_CHECK_AFTER = 0.1


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

    def post(self, body: bytes, timeout: float, check: Callable[[], None]) -> Answer:
        deadline = time.monotonic() + timeout
        request = self._head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        connection = self._send(request, deadline)
        is_kept = False
        try:
            answer, rest = _read_head(connection, deadline, check)
            # HTTP/1.1 keeps a connection by default; uWSGI closes it all the same, in silence.
            keeps = answer.headers.get("connection", "").lower() == "keep-alive"
            self._posts = (self._posts + 1) % _POSTS
            is_kept = keeps and is_empty(answer) and not rest
            is_kept = is_kept and answer.status != 503 and self._posts > 0
        except TimeoutError as error:
            raise timed_out(self._url, timeout) from error
        except OSError as error:
            raise broken(self._url, error) from error
        finally:
            self._used_at = time.monotonic()
            if not is_kept:
                self._drop()
        return answer

    def _send(self, request: bytes, deadline: float) -> socket.socket:
        """Put the request on a live connection and return that."""
        kept = self._kept()
        try:
            connection = kept or self._connect(deadline)
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            sent = connection.send(request)
        except OSError as error:
            self._drop()
            if kept is not None:
                # The server closed it under us; nothing of this POST went out.
                return self._send(request, deadline)
            raise unreachable(self._url, error) from error
        try:
            if sent < len(request):  # Even sending nothing fails where the server has closed.
                connection.sendall(request[sent:])
        except OSError as error:
            self._drop()
            raise broken(self._url, error) from error
        return connection

    def _kept(self) -> socket.socket | None:
        """Return the kept connection if it is still good."""
        is_fresh = time.monotonic() - self._used_at < IDLE
        if self._socket is not None and not (is_fresh and _is_silent(self._socket)):
            self._drop()
        return self._socket

    def _connect(self, deadline: float) -> socket.socket:
        timeout = max(0.001, min(CONNECT_TIMEOUT, deadline - time.monotonic()))
        if self._unix is None:
            self._socket = socket.create_connection((self._host, self._port), timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(timeout)
            self._socket.connect(self._unix)
        return self._socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        self._drop()  # The thread that owned it has ended.


def _request_head(path: str, host: str, config: Config) -> bytes:
    headers = {"Host": host, "Content-Type": CONTENT_TYPE, "Connection": "keep-alive"}
    lines = [f"{name}: {value}" for name, value in {**headers, **sent_headers(config)}.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, ""]).encode("latin-1")


def _read_head(
    connection: socket.socket, deadline: float, check: Callable[[], None]
) -> tuple[Answer, bytes]:
    """Read the head of an answer; return also what came after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        if len(received) > _HEAD:
            raise TransportError("The answer's head has no end. What listens there?")
        chunk = receive(connection, _HEAD, deadline, check)
        if not chunk:
            raise ConnectionResetError("closed without an answer")
        received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    status = re.match(r"HTTP/1\.\d (\d{3})", status_line)
    if status is None:
        raise TransportError("The answer is not HTTP. What listens there?")
    pairs = (line.partition(":") for line in lines)
    return Answer(int(status[1]), {n.strip().lower(): value.strip() for n, _, value in pairs}), rest


def receive(
    connection: socket.socket, size: int, deadline: float, check: Callable[[], None]
) -> bytes:
    """Return the next bytes, at most ``size``; none at the end of the connection.

    :raises TimeoutError: if nothing comes before ``deadline`` on the monotonic clock.
    """
    while (remaining := deadline - time.monotonic()) > 0:
        connection.settimeout(min(remaining, _CHECK_AFTER))
        try:
            return connection.recv(size)
        except TimeoutError:
            check()
    raise TimeoutError


def is_empty(answer: Answer) -> bool:
    """Tell whether no body follows, so that the connection can be used again."""
    has_no_body = answer.status == 204 or answer.headers.get("content-length") == "0"
    return has_no_body and "transfer-encoding" not in answer.headers


def _is_silent(connection: socket.socket) -> bool:
    """Tell whether an idle connection has nothing to say: an end, or bytes nobody asked for."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
