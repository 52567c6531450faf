"""Where the app listens, as its own server shows it: never as a client says."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

#: Seconds after which a guess that did not answer is tried again.
_PATIENCE = 30.0


class Address:
    """The base URL of one app: configured, seen on the server's socket, or guessed and confirmed.

    ``url`` is None until it is known for certain; ``is_own`` says that this process's own server
    listens there. Threads only ever replace a whole value.
    """

    def __init__(self, configured: str | None) -> None:
        self.url = configured
        self.is_own = False
        self._guess: str | None = None
        self._refuted_at = float("-inf")

    def notice(self, environ: Mapping[str, Any]) -> None:
        """Learn from the environ of a request that a server passes in."""
        if self.url is not None or self._guess is not None:
            return
        # ProxyFix keeps what the server said before a client's headers were put in its place.
        server = environ.get("werkzeug.proxy_fix.orig", environ)
        root = quote(server.get("SCRIPT_NAME", "").rstrip("/"))
        connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
        if connection is not None:
            self.url = _listening(connection, root)
            self.is_own = self.url is not None
        elif "SERVER_SOFTWARE" in environ or "uwsgi.version" in environ:
            port = server.get("SERVER_PORT", "")
            if port.isascii() and port.isdigit():
                self._guess = f"http://127.0.0.1:{port}{root}"

    @property
    def may_be_known(self) -> bool:
        return self.url is not None or self._guess is not None

    def guess(self) -> str | None:
        """Return the address to ask, or None if there is none or it was asked lately."""
        if time.monotonic() - self._refuted_at < _PATIENCE:
            return None
        return self._guess

    def confirm(self, guess: str) -> None:
        self.url = guess

    def refute(self, guess: str) -> None:
        """The guess did not answer as ours: leave it for a while."""
        self._refuted_at = time.monotonic()


def _listening(connection: socket.socket, root: str) -> str | None:
    """Return the base URL of the socket that accepted ``connection``."""
    try:
        name = connection.getsockname()
    except OSError:  # The client has gone already; the next request will tell.
        return None
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        scheme = "https" if hasattr(connection, "cipher") else "http"
        return f"{scheme}://{host}:{name[1]}{root}"
    path = name.decode() if isinstance(name, bytes) else name
    return f"http+unix://{quote(path, safe='')}{root}" if path else None
