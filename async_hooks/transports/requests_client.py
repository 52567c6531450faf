"""The client that speaks everything: requests."""

from __future__ import annotations

import ssl
import time

import requests
from urllib3.exceptions import NewConnectionError

from ..config import Config
from ..errors import Untrusted
from ..signing import CONTENT_TYPE
from .client import CONNECT_TIMEOUT, IDLE, Answer, broken, reason, timed_out, unreachable


class RequestsClient:
    """Everything that requests can: TLS, CA bundles, auth objects.

    The environment's proxies and ``.netrc`` are not asked, redirects not followed. The timeout
    counts from one piece of the answer's head to the next.
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
        if time.monotonic() - self._used_at >= IDLE:
            self._session.close()
        try:
            with self._session.post(
                self._url,
                data=body,
                timeout=(min(CONNECT_TIMEOUT, timeout), timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                if response.status_code == 204 or headers.get("content-length") == "0":
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
            raise broken(self._url, error) from error
        except requests.exceptions.RequestException as error:
            raise broken(self._url, error) from error
        finally:
            self._used_at = time.monotonic()


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
