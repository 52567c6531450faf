"""Where the app listens: what its own server shows, never what a client says."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ..wsgi import is_served

#: Seconds for which nothing is asked after no guess answered.
_PATIENCE = 30.0


class Address:
    """The base URL of one app: configured, seen on the server's socket, or guessed and confirmed.

    ``url`` is None until it is known for certain; ``is_own`` says that this process's own server
    listens there. Threads only ever replace a whole value.

    A server's socket leaves no doubt, but a client may have a say in the path that the app is
    mounted at, and in the port that a server without a visible socket names. Then there are
    guesses, which are believed when our own endpoint answers from there.
    """

    def __init__(self, configured: str | None) -> None:
        self.url = configured
        self.is_own = False
        self._guesses: list[str] = []
        self._refuted_at = float("-inf")

    def observe(self, environ: Mapping[str, Any]) -> None:
        """Learn the address from the environ of a request that a server passes in."""
        if self.url is not None or self._guesses:
            return
        # ProxyFix keeps what the server said before a client's headers were put in its place.
        server = environ.get("werkzeug.proxy_fix.orig", environ)
        connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
        if connection is not None:
            base = _listening(connection)
            self.is_own = base is not None
        else:
            base = _port(environ, server)
        if base is None:
            return
        roots = _roots(environ, server)
        if self.is_own and roots == [""]:
            self.url = base
        else:
            self._guesses = [base + root for root in roots]

    @property
    def may_be_known(self) -> bool:
        return self.url is not None or bool(self._guesses)

    def guesses(self) -> list[str]:
        """Return the addresses to ask, best first; none if they were asked lately."""
        if time.monotonic() - self._refuted_at < _PATIENCE:
            return []
        return self._guesses

    def confirm(self, guess: str) -> None:
        self.url = guess

    def refute(self) -> None:
        """Forget the guesses, none of which answered as ours; another request shows others."""
        self._refuted_at = time.monotonic()
        self._guesses = []


def _listening(connection: socket.socket) -> str | None:
    """Return the base URL of the socket that accepted ``connection``."""
    try:
        name = connection.getsockname()
    except OSError:  # The client has gone already; the next request will show it.
        return None
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        scheme = "https" if hasattr(connection, "cipher") else "http"
        return f"{scheme}://{host}:{name[1]}"
    path = name.decode() if isinstance(name, bytes) else name
    return f"http+unix://{quote(path, safe='')}" if path else None


def _port(environ: Mapping[str, Any], server: Mapping[str, Any]) -> str | None:
    """Return the base URL by the port that a server without a visible socket names."""
    if not is_served(environ):
        return None  # The test client.
    if any(key.startswith(("HTTP_X_FORWARDED", "HTTP_FORWARDED")) for key in environ):
        return None  # waitress may have taken its port from there; the next request will show it.
    port = str(server.get("SERVER_PORT", ""))  # A number on hypercorn; 0 at a unix socket.
    is_port = port.isascii() and port.isdigit() and port != "0"
    return f"http://127.0.0.1:{port}" if is_port else None


def _roots(environ: Mapping[str, Any], server: Mapping[str, Any]) -> list[str]:
    """Return the paths that the app may be mounted at, as its server sees it, best first."""
    said = [environ.get("SCRIPT_NAME", ""), server.get("SCRIPT_NAME", "")]
    if (proxied := said[0]) and server is not environ:
        # A dispatcher inside of ProxyFix appends its mount to the prefix of the proxy.
        prefix = environ.get("HTTP_X_FORWARDED_PREFIX", "").rpartition(",")[2].strip().rstrip("/")
        said.insert(0, proxied.removeprefix(prefix))
    if any(said):
        said.append("")
    return list(dict.fromkeys(quote(root.rstrip("/")) for root in said))
