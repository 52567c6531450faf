"""Waking the processes of an app on this machine: who adds a delivery wakes those who relay.

Each process that relays listens at a datagram socket in the folder that they share. A notification
that gets lost costs no more than the wait for the next look: nothing depends on it.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

from .runtime_dir import runtime_dir

#: Seconds for which a list of listening processes is believed.
_FRESH = 1.0

#: By app, the sockets that its processes listen at, and when they were listed.
_listening: dict[str, tuple[list[str], float]] = {}


class Notifier:
    """Wakes the thread that waits; a notification while nobody waits ends the next wait.

    Its own process notifies it only if somebody waits: threads that are busy need no system call
    for it.
    """

    def __init__(self) -> None:
        self._is_notified = self._is_waited_for = False
        self._receiver: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._path: Path | None = None

    def listen(self, name: str, process_id: str) -> None:
        """Listen from now on, once, also to the other processes of the app called ``name``."""
        if self._receiver is None:
            with suppress(OSError, AttributeError):  # No such folder, or no such sockets.
                if (folder := runtime_dir(name)) is not None:
                    self._path = folder / f"{process_id}.socket"
                    self._receiver, self._sender = _sockets(self._path)
            if self._receiver is None or self._sender is None:
                self._receiver, self._sender = socket.socketpair()
            self._sender.setblocking(False)

    def notify(self) -> None:
        self._is_notified = True
        if self._is_waited_for and self._sender is not None:
            with suppress(OSError):  # It is closed, or has been notified often enough.
                self._sender.send(b"!")

    def wait(self, seconds: float) -> None:
        """Return when it is notified, at the latest after ``seconds``. It must listen."""
        assert self._receiver is not None  # noqa: S101 - its thread has seen to it
        self._is_waited_for = True
        if not self._is_notified:
            with suppress(OSError):  # The time is over, or nothing more waits.
                self._receiver.settimeout(max(0.0, seconds))
                while self._receiver.recv(64):
                    self._receiver.setblocking(False)
        self._is_waited_for = self._is_notified = False

    def close(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._receiver is not None and self._sender is not None:
            self._receiver.close()
            self._sender.close()


def notify_all(name: str) -> None:
    """Notify every process of the app called ``name`` that listens; wait for none."""
    with suppress(OSError, AttributeError):
        paths, listed_at = _listening.get(name, ([], float("-inf")))
        if time.monotonic() - listed_at > _FRESH:
            folder = runtime_dir(name)
            paths = [str(path) for path in folder.glob("*.socket")] if folder else []
            _listening[name] = paths, time.monotonic()
        if paths:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                for path in paths:
                    with suppress(OSError):  # It died, or has been notified often enough.
                        sender.sendto(b"!", path)


def _sockets(path: Path) -> tuple[socket.socket, socket.socket]:
    """Return a socket that others can send to by its ``path``, and one that sends to it."""
    receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    try:
        receiver.bind(str(path))
        sender.connect(str(path))
    except OSError:
        receiver.close()
        sender.close()
        raise
    return receiver, sender
