"""The bell: who adds a delivery and does not carry it wakes those of the machine who do.

A datagram socket for each relay, in the folder that the app's processes share. A ring that gets
lost costs no more than the wait for the next look: nothing depends on it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .shared_folder import shared_folder

#: Seconds for which the list of bells is believed.
_FRESH = 1.0


class Bell:
    """Calls ``wake`` when somebody rings, until it is closed."""

    def __init__(self, name: str, relay_id: str, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._socket: socket.socket | None = None
        self._path: Path | None = None
        self._is_closed = False
        try:
            self._open(name, relay_id)
        except (OSError, AttributeError):  # No such folder, or no such sockets: the relay looks.
            self.close()

    def close(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._socket is not None:
            self._is_closed = True
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # Ends a recv that waits.
            self._socket.close()

    def _open(self, name: str, relay_id: str) -> None:
        folder = shared_folder(name)
        if folder is None:
            return
        self._path = folder / f"bell-{relay_id}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        listening = (self._socket,)
        name = "async_hooks-bell"
        threading.Thread(target=self._listen, args=listening, name=name, daemon=True).start()

    def _listen(self, bell: socket.socket) -> None:
        with suppress(OSError):
            while bell.recv(1) and not self._is_closed:
                self._wake()


class Ringer:
    """Rings all bells of the app called ``name``, and waits for none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bells: list[str] = []
        self._listed_at = float("-inf")

    def ring(self) -> None:
        with suppress(OSError, AttributeError):
            if time.monotonic() - self._listed_at > _FRESH:
                folder = shared_folder(self._name)
                self._bells = [str(path) for path in folder.glob("bell-*")] if folder else []
                self._listed_at = time.monotonic()
            if self._bells:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.setblocking(False)
                    for bell in self._bells:
                        with suppress(OSError):  # Its relay died, or has been rung often enough.
                            sender.sendto(b"!", bell)
