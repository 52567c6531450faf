"""The client that speaks everything: requests."""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, SSLError

from ..config import Config
from ..errors import TransportError, Untrusted
from ..signing import CONTENT_TYPE
from .client import CONNECT_TIMEOUT, IDLE, Answer, broken, reason, timed_out, unreachable
from .http_client import is_empty, receive

#: Returns the next bytes of a connection, at most as many as asked for.
Receive = Callable[[socket.socket, int], bytes]


class RequestsClient:
    """Everything that requests can: TLS, CA bundles, auth objects.

    Without the environment's proxies and ``.netrc``, without redirects, without cookies.
    """

    def __init__(self, url: str, config: Config) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = config.verify
        self._session.auth = config.auth
        self._session.headers.update({"Content-Type": CONTENT_TYPE, **config.headers})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._adapter = _Adapter()
        self._session.mount("http://", self._adapter)
        self._session.mount("https://", self._adapter)
        self._used_at = 0.0

    def post(self, body: bytes, timeout: float, check: Callable[[], None]) -> Answer:
        now = time.monotonic()
        if now - self._used_at >= IDLE:
            self._session.close()
        # Because the timeouts of requests count from one byte to the next; this counts them all.
        self._adapter.receive = partial(receive, deadline=now + timeout, check=check)
        try:
            with self._session.post(
                self._url,
                data=body,
                timeout=(min(CONNECT_TIMEOUT, timeout), timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                answer = Answer(response.status_code, headers)
                if is_empty(answer):
                    response.content  # noqa: B018  # Read to its end, the connection is kept.
                return answer
        except requests.exceptions.ReadTimeout as error:
            raise timed_out(self._url, timeout) from error
        except requests.exceptions.RequestException as error:
            raise _explained(self._url, error) from error
        finally:
            self._used_at = time.monotonic()


class _Adapter(HTTPAdapter):
    """Reads each answer as ``receive`` tells it to."""

    receive: Receive

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = partial(self._connection, type(pool).ConnectionCls)
        return pool

    def _connection(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        made.response_class = lambda connected, *args, **kwargs: HTTPResponse(
            _Received(connected, self.receive),  # type: ignore[arg-type]
            *args,
            **kwargs,
        )
        return made


class _Received(io.RawIOBase):
    """A connected socket as the file that http.client reads an answer from."""

    def __init__(self, connected: socket.socket, receive: Receive) -> None:
        self._connected = connected
        self._receive = receive
        # Because a server that closes has the socket closed before its answer is read to the end.
        self._open = connected.makefile("rb", buffering=0)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._receive(self._connected, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._open.close()
        super().close()


def _explained(url: str, error: requests.exceptions.RequestException) -> TransportError:
    """Return what ``error`` means: nothing was sent, where no connection was made or trusted."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(cause, ConnectTimeoutError):  # Which a refused connection is, too.
        return unreachable(url, error)
    if isinstance(cause, SSLError) and isinstance(cause.args[0], ssl.SSLCertVerificationError):
        return Untrusted(
            f"{url!r} is not trusted ({reason(error)}). Set 'ASYNC_HOOKS_VERIFY' to the CA bundle "
            "that signed its certificate."
        )
    return broken(url, error)
