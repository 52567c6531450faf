"""The client that speaks everything: requests."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError

from ..config import Config
from ..errors import Untrusted
from ..signing import CONTENT_TYPE
from .client import CONNECT_TIMEOUT, IDLE, Answer, broken, reason, timed_out, unreachable


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
        self._adapter = _Watched()
        self._session.mount("http://", self._adapter)
        self._session.mount("https://", self._adapter)
        self._used_at = 0.0

    def cut(self) -> None:
        self._adapter.hang_up(for_good=True)

    def post(self, body: bytes, timeout: float) -> Answer:
        if time.monotonic() - self._used_at >= IDLE:
            self._session.close()
        started = time.monotonic()
        # The timeouts of requests count from one byte to the next; this one counts them all.
        watch = threading.Timer(timeout, self._adapter.hang_up)
        watch.daemon = True
        watch.start()
        try:
            with self._session.post(
                self._url,
                data=body,
                timeout=(min(CONNECT_TIMEOUT, timeout), timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                is_empty = response.status_code == 204 or headers.get("content-length") == "0"
                if is_empty and "transfer-encoding" not in headers:
                    response.content  # noqa: B018  # Read to its end, the connection is kept.
                return Answer(response.status_code, headers)
        except requests.exceptions.ReadTimeout as error:
            raise timed_out(self._url, timeout) from error
        except requests.exceptions.SSLError as error:
            if not _is_untrusted(error):
                raise broken(self._url, error) from error
            raise Untrusted(
                f"{self._url!r} is not trusted ({reason(error)}). Set 'ASYNC_HOOKS_VERIFY' to "
                "the CA bundle that signed its certificate."
            ) from error
        except requests.exceptions.ConnectionError as error:
            if _never_connected(error):
                raise unreachable(self._url, error) from error
            if time.monotonic() - started >= timeout:
                raise timed_out(self._url, timeout) from error
            raise broken(self._url, error) from error
        except requests.exceptions.RequestException as error:
            raise broken(self._url, error) from error
        finally:
            watch.cancel()
            self._used_at = time.monotonic()


class _Watched(HTTPAdapter):
    """Knows its connection, so that what has no end can be ended from another thread."""

    def __init__(self) -> None:
        super().__init__()
        self._connection: Any = None
        self._is_cut = False

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        if self._is_cut:
            raise requests.exceptions.ConnectionError("cut")
        return super().send(*args, **kwargs)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        make = type(pool).ConnectionCls

        def remembered(*args: Any, **kwargs: Any) -> Any:
            self._connection = make(*args, **kwargs)
            return self._connection

        pool.ConnectionCls = remembered
        return pool

    def hang_up(self, *, for_good: bool = False) -> None:
        self._is_cut = self._is_cut or for_good
        connected = getattr(self._connection, "sock", None)
        if connected is not None:
            with suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _is_untrusted(error: requests.exceptions.SSLError) -> bool:
    """Tell whether the certificate was refused, and so nothing was sent."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _never_connected(error: requests.exceptions.ConnectionError) -> bool:
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(cause, NewConnectionError)
