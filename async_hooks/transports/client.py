"""HTTP clients for the loopback: a lean one for plain HTTP, `requests` for everything.

Both post one body and return the head of the answer. A thread owns its client, and so its
connection; nobody else touches it. After any error, and after 1.5 seconds of idleness (gunicorn
closes after 2), the connection is dropped, so that no POST is ever repeated blindly.
"""

from __future__ import annotations

import socket
import time
from base64 import b64encode
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote, urlsplit

import requests
from urllib3.exceptions import NewConnectionError

from ..config import Config
from ..endpoint import CONTENT_TYPE
from ..errors import ConnectionBroken, TransportError, Unreachable

#: Seconds after which an idle connection is not used any more.
_IDLE = 1.5

#: Bytes that the head of an answer may have; ours has some hundred.
_HEAD = 64 * 1024

_CONNECT_TIMEOUT = 5.0

#: POSTs on one connection. It leads to one worker process; the next may find a less busy one.
_POSTS = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """The status and, by lower-case name, the headers of an answer."""

    status: int
    headers: dict[str, str]


class Client(Protocol):
    def post(self, body: bytes, timeout: float) -> Answer:
        """Post ``body``; the whole answer's head must come within ``timeout`` seconds.

        :raises TransportError: with ``unsent`` true if no byte of the request went out.
        """
        ...


def client_for(url: str, config: Config) -> Client:
    """Return the client that fits ``url``: TLS and auth objects are requests' business."""
    scheme = urlsplit(url).scheme
    if scheme == "http+unix" or (scheme == "http" and not callable(config.auth)):
        return LeanClient(url, config)
    return RequestsClient(url, config)


class LeanClient:
    """HTTP/1.1 on one kept connection, TCP or unix socket.

    It understands what a WSGI server says to our endpoint: a head and no body. Where a body
    follows, the connection is dropped rather than the body read.
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
            sent = connection.send(request)
        except OSError as error:
            self._drop()
            if kept is not None:  # The server closed it under us; nothing of this POST went out.
                return self._send(request, deadline)
            raise _unreachable(self._url, error) from error
        try:
            connection.sendall(request[sent:])
        except OSError as error:
            self._drop()
            raise TransportError(
                f"{self._url!r} did not take the whole token ({_reason(error)}). "
                "Does it limit the size of requests?"
            ) from error
        return connection

    def _kept(self) -> socket.socket | None:
        """Return the kept connection if it is still good."""
        if self._socket is None:
            return None
        if time.monotonic() - self._used_at < _IDLE and _is_silent(self._socket):
            return self._socket
        self._drop()
        return None

    def _connect(self, deadline: float) -> socket.socket:
        timeout = max(0.001, min(_CONNECT_TIMEOUT, deadline - time.monotonic()))
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
            return _timed_out(self._url, timeout)
        return _broken(self._url, error)


class RequestsClient:
    """Everything that requests can: TLS, CA bundles, auth objects.

    The environment's proxies and ``.netrc`` are not asked, redirects not followed.
    """

    def __init__(self, url: str, config: Config) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = config.verify
        self._session.auth = config.auth
        self._session.headers.update({"Content-Type": CONTENT_TYPE, **config.headers})
        self._used_at = 0.0

    def post(self, body: bytes, timeout: float) -> Answer:
        if time.monotonic() - self._used_at >= _IDLE:
            self._session.close()
        try:
            with self._session.post(
                self._url,
                data=body,
                timeout=(min(_CONNECT_TIMEOUT, timeout), timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                if response.status_code == 204 or headers.get("content-length") == "0":
                    response.content  # noqa: B018  # Read to its end, the connection is kept.
                return Answer(response.status_code, headers)
        except requests.exceptions.ReadTimeout as error:
            raise _timed_out(self._url, timeout) from error
        except requests.exceptions.SSLError as error:
            raise TransportError(
                f"{self._url!r} is not trusted ({_reason(error)}). Set 'ASYNC_HOOKS_VERIFY' to "
                "the CA bundle that signed its certificate.",
                unsent=True,
            ) from error
        except requests.exceptions.ConnectionError as error:
            if _never_connected(error):
                raise _unreachable(self._url, error) from error
            raise _broken(self._url, error) from error
        except requests.exceptions.RequestException as error:
            raise _broken(self._url, error) from error
        finally:
            self._used_at = time.monotonic()


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
    answer, version = _parse(head.decode("latin-1"))
    bodiless = answer.status == 204 or answer.headers.get("content-length") == "0"
    keeps = version == "HTTP/1.1" and answer.headers.get("connection", "").lower() != "close"
    return answer, bodiless and keeps and not rest


def _parse(head: str) -> tuple[Answer, str]:
    status_line, *lines = head.split("\r\n")
    version, _, rest = status_line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdigit():
        raise TransportError("The answer is not HTTP. What listens there?")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Answer(int(code), headers), version


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


def _never_connected(error: requests.exceptions.ConnectionError) -> bool:
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(cause, NewConnectionError)


def _unreachable(url: str, error: Exception) -> Unreachable:
    return Unreachable(f"{url!r} can't be reached ({_reason(error)}). Does the app listen there?")


def _timed_out(url: str, timeout: float) -> TransportError:
    return TransportError(
        f"{url!r} gave no verdict within {timeout:g} seconds; the task may still be running. "
        "Raise its 'timeout', or 'ASYNC_HOOKS_TIMEOUT'."
    )


def _broken(url: str, error: Exception) -> ConnectionBroken:
    return ConnectionBroken(
        f"The connection to {url!r} broke before a verdict came ({_reason(error)}). "
        "Did the worker die, or was the server stopped?"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
