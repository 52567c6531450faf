"""The fresh request: one environ for a run, however its envelope came here."""

from __future__ import annotations

import io
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import Config
from ..envelope import Origin
from ..errors import TransportError
from ..wsgi import drain

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

#: Keys that tell who carried the envelope, and how.
_CARRIERS = ("HTTP_", "REMOTE_PORT", "REMOTE_HOST", "REQUEST_URI", "RAW_URI")

#: Headers that the fresh request does not have, even if they are configured for the way here.
_NOT_OURS = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_COOKIE", "HTTP_HOST", "HTTP_CONTENT_")


#: The environ where no server has made one.
_NO_SERVER: Mapping[str, Any] = {
    "wsgi.version": (1, 0),
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


def fresh_environ(
    config: Config, origin: Origin, received: Mapping[str, Any] | None = None
) -> WSGIEnvironment:
    """Return the environ of our own request, which came in where the triggering one did.

    Of how its envelope was carried, which ``received`` tells, nothing is left: a ProxyFix inside
    must not take that for the visitor's way, and a run is the same request by loopback and in
    process. What the server and the middlewares say of themselves stays.
    """
    name, _, port = origin.host.rpartition(":")
    if not name or not port.isdigit():
        name, port = origin.host, "443" if origin.scheme == "https" else "80"
    known = {"wsgi.errors": sys.stderr, **_NO_SERVER} if received is None else received
    return {
        **{key: value for key, value in known.items() if not key.startswith(_CARRIERS)},
        **_headers(config),
        "REQUEST_METHOD": "POST",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": origin.scheme,
        "HTTP_HOST": origin.host,
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "REMOTE_ADDR": "127.0.0.1",
        "SCRIPT_NAME": origin.root,
        "PATH_INFO": f"{config.url_prefix}/run",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": "0",
        "wsgi.input": io.BytesIO(),
    }


def sent_headers(config: Config) -> dict[str, str]:
    """Return the configured headers, and the Authorization of a (user, password) pair."""
    if not isinstance(config.auth, tuple):
        return config.headers
    pair = b64encode(":".join(config.auth).encode()).decode()
    return {"Authorization": f"Basic {pair}", **config.headers}


def _headers(config: Config) -> dict[str, str]:
    """Return the environ's keys for what is configured: the app may demand it of any request."""
    headers = _authorized(config) if callable(config.auth) else sent_headers(config)
    keys: dict[str, str] = {}
    for name, value in headers.items():
        key = f"HTTP_{name}".upper().replace("-", "_")
        if not key.startswith(_NOT_OURS):
            keys[key] = value.decode("latin-1") if isinstance(value, bytes) else value
    return keys


def _authorized(config: Config) -> Mapping[str, Any]:
    """Return the configured headers as the configured auth object leaves them."""
    # Here, because it takes megabytes and time to start that few apps need to spend.
    from requests import Request

    # Not to the visitor's host, which requests may refuse.
    request = Request("POST", "http://localhost", headers=config.headers, auth=config.auth)
    try:
        return request.prepare().headers
    except Exception as error:
        raise TransportError(
            f"The auth object of 'ASYNC_HOOKS_AUTH' raised {type(error).__name__}."
        ) from error


class Answered(NamedTuple):
    """The status that an app answered, and where it redirects to."""

    status: str = ""
    location: str = ""


def serve(wsgi_app: WSGIApplication, environ: WSGIEnvironment) -> Answered:
    """Let ``wsgi_app`` serve ``environ`` to its end; return what it answered."""
    answered = Answered()

    def start_response(
        status: str, headers: Sequence[tuple[str, str]], *args: Any
    ) -> Callable[[bytes], None]:
        nonlocal answered
        locations = [value for name, value in headers if name.lower() == "location"]
        answered = Answered(status, *locations[:1])
        return lambda data: None

    drain(wsgi_app(environ, start_response))
    return answered
