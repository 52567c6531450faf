"""The fresh request: one environ for a run, however its envelope came here."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..envelope import Origin
from ..wsgi import drain

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

#: Headers that the fresh request does not have, whoever sends them.
_NOT_OURS = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_COOKIE")


def freshen(environ: WSGIEnvironment, origin: Origin) -> None:
    """Make ``environ`` that of a request which came in where the triggering one did."""
    # The loopback's own way here is over: a ProxyFix inside must not take it for the visitor's.
    # We send no cookies; what comes with some was put together by another.
    for key in [key for key in environ if key.startswith(_NOT_OURS)]:
        del environ[key]
    name, _, port = origin.host.rpartition(":")
    if not name or not port.isdigit():
        name, port = origin.host, "443" if origin.scheme == "https" else "80"
    environ.update(
        {
            "wsgi.url_scheme": origin.scheme,
            "HTTP_HOST": origin.host,
            "SERVER_NAME": name,
            "SERVER_PORT": port,
            "SCRIPT_NAME": origin.root,
            "QUERY_STRING": "",
            "CONTENT_TYPE": "",
            "CONTENT_LENGTH": "0",
            "wsgi.input": io.BytesIO(),
        }
    )


def fresh_environ(path: str, origin: Origin) -> WSGIEnvironment:
    """Return the environ of a fresh request to ``path`` that no server makes."""
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    freshen(environ, origin)
    return environ


def serve(wsgi_app: WSGIApplication, environ: WSGIEnvironment) -> str:
    """Let ``wsgi_app`` serve ``environ`` to its end; return the status that it answered."""
    answered = ""

    def start_response(status: str, *args: Any) -> Callable[[bytes], None]:
        nonlocal answered
        answered = status
        return lambda data: None

    drain(wsgi_app(environ, start_response))
    return answered
