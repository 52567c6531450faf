"""The bell: who adds a delivery and does not carry it wakes those of the machine who do.

A datagram socket for each relay, in the folder that the app's processes share. A ring that gets
lost costs no more than the wait for the next look: nothing depends on it.
"""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .runtime_dir import runtime_dir

#: Seconds for which the list of bells is believed.
_FRESH = 1.0


class Notifier:
    """Wakes the thread that waits for it; a ring while nobody waits ends the next wait.

    Its own process rings it by a pair of sockets, and only if somebody waits: threads that are
    busy need no system call for it.
    """

    def __init__(self) -> None:
        self._is_rung = self._is_waited_for = False
        self._heard: selectors.BaseSelector | None = None
        self._rope: socket.socket | None = None
        self._path: Path | None = None

    def hang(self, name: str, relay_id: str) -> None:
        """Listen from now on, also to the other processes of the app called ``name``."""
        if self._heard is None:
            ours, self._rope = socket.socketpair()
            self._heard = heard = selectors.DefaultSelector()
            _listen(heard, ours)
            with suppress(OSError, AttributeError):  # No such folder, no such sockets: it looks.
                self._let_others_ring(heard, name, relay_id)

    def ring(self) -> None:
        self._is_rung = True
        if self._is_waited_for and self._rope is not None:
            with suppress(OSError):  # It is closed, or has been rung often enough.
                self._rope.send(b"!")

    def wait(self, seconds: float) -> None:
        """Return when it is rung, at the latest after ``seconds``. It must hang."""
        assert self._heard is not None  # noqa: S101 - its thread has seen to it
        self._is_waited_for = True
        if not self._is_rung:
            for key, _ in self._heard.select(seconds):
                _empty(key.fileobj)
        self._is_waited_for = self._is_rung = False

    def close(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._heard is not None and self._rope is not None:
            for rings in [key.fileobj for key in self._heard.get_map().values()]:
                rings.close()  # type: ignore[union-attr]
            self._heard.close()
            self._rope.close()

    def _let_others_ring(self, heard: selectors.BaseSelector, name: str, relay_id: str) -> None:
        folder = runtime_dir(name)
        if folder is not None:
            theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            _listen(heard, theirs)
            self._path = folder / f"bell-{relay_id}"
            theirs.bind(str(self._path))


def _listen(heard: selectors.BaseSelector, rings: socket.socket) -> None:
    rings.setblocking(False)
    heard.register(rings, selectors.EVENT_READ)


def _empty(rings: Any) -> None:
    with suppress(OSError):
        while rings.recv(64):
            pass


class Ringer:
    """Rings all bells of the app called ``name``, and waits for none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bells: list[str] = []
        self._listed_at = float("-inf")

    def ring(self) -> None:
        with suppress(OSError, AttributeError):
            if time.monotonic() - self._listed_at > _FRESH:
                folder = runtime_dir(self._name)
                self._bells = [str(path) for path in folder.glob("bell-*")] if folder else []
                self._listed_at = time.monotonic()
            if self._bells:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.setblocking(False)
                    for notifier in self._bells:
                        with suppress(OSError):  # Its relay died, or has been rung often enough.
                            sender.sendto(b"!", notifier)
