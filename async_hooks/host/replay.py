"""Which tokens were consumed: one record for all processes of an app on one machine.

Whoever takes a token first, consumes it: the endpoint before it runs the envelope, so that a
replay finds it taken; or its sender, when a connection broke, so that what had not begun never
will, and is safe to send again.

The record is a file of 16-byte digests for each span of time, in a private folder of the temporary
directory. A take locks the file, reads what other processes appended, and appends. The lock is the
kernel's (flock): it ends with its holder, and a holder that dies before the append has taken
nothing. A file is removed once no token of its span can be valid. Where no such folder can be had,
each process keeps a record of its own, and says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from pathlib import Path

from ..errors import TokenReplayed
from .per_process import PerProcess
from .runtime_dir import host_id_of, runtime_dir

if sys.platform != "win32":
    import fcntl

_SIZE = 16

#: Seconds of a file's span, the same for every configuration, and how long one is kept at least.
_SPAN = 300
_KEPT = 3600

logger = logging.getLogger("async_hooks")


class ReplayGuard:
    """The record of the app called ``name``, for tokens that are valid for ``seconds``."""

    def __init__(self, name: str, seconds: float) -> None:
        self._record = PerProcess(lambda: _Record(name, seconds))

    @property
    def host_id(self) -> str | None:
        """Tells records apart that are not shared; None if this one is shared with nobody."""
        return self._record.get().host_id

    def take(self, token: bytes, issued_at: float) -> bool:
        """Consume ``token``; return whether other processes will know.

        :raises TokenReplayed: if it was consumed before.
        """
        digest = hashlib.sha256(token).digest()[:_SIZE]
        record = self._record.get()
        if not record.take(digest, issued_at):
            raise TokenReplayed("The token was used before. Does a proxy repeat POSTs?")
        return record.host_id is not None


class _Record:
    """One process's view of the record. ``place`` names the folder, unlike any other anywhere."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = max(seconds, _KEPT)
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._spans: dict[int, _Span] = {}
        self.host_id: str | None = None
        self._open()

    def take(self, digest: bytes, issued_at: float) -> bool:
        number = int(issued_at // _SPAN)
        with self._lock:
            span = self._spans.get(number) or self._begin(number)
            try:
                return span.take(digest)
            except OSError as error:
                self._stop_sharing(error)
                return span.add(digest)

    def _begin(self, number: int) -> _Span:
        """Begin a span; let go of those that no valid token can lie in."""
        oldest = number - int(self._seconds // _SPAN) - 2
        for old in [span for span in self._spans if span < oldest]:
            self._spans.pop(old).close()
        if self.host_id is None or not (self._folder and self._folder.is_dir()):
            self._open()
        span = self._spans[number] = _Span()
        if self._folder is not None:
            try:
                _remove_before(self._folder, oldest)
                span.open(self._folder / f"span-{number}")
            except OSError as error:
                self._stop_sharing(error)
        return span

    def _open(self) -> None:
        try:
            self._folder = runtime_dir(self._name)
            self.host_id = host_id_of(self._folder) if self._folder is not None else None
        except OSError as error:
            self._stop_sharing(error)

    def _stop_sharing(self, error: OSError) -> None:
        self.host_id = self._folder = None
        logger.warning(
            "Each process keeps its own record of consumed tokens, because they can't share one: "
            "%s. Set 'TMPDIR' to a folder that this user can write to.",
            error,
        )


class _Span:
    """The digests of one span of time: a set, and the file, if any, that it is a copy of."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._read = 0
        self._file: int | None = None

    def open(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, digest: bytes) -> bool:
        """Return whether ``digest`` is new.

        :raises OSError: if that can't be recorded for others.
        """
        if self._file is None:
            return self.add(digest)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._catch_up(self._file)
            if digest not in self._digests:
                os.write(self._file, digest)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return self.add(digest)

    def add(self, digest: bytes) -> bool:
        is_new = digest not in self._digests
        self._digests.add(digest)
        return is_new

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _catch_up(self, file: int) -> None:
        while news := os.pread(file, 4096 * _SIZE, self._read):
            whole = len(news) - len(news) % _SIZE
            self._digests.update(news[at : at + _SIZE] for at in range(0, whole, _SIZE))
            self._read += whole
            if whole < len(news):  # A full disk cut the last record short.
                os.ftruncate(file, self._read)
                return


def _remove_before(folder: Path, oldest: int) -> None:
    for path in folder.glob("span-*"):
        if int(path.name.removeprefix("span-")) < oldest:
            path.unlink(missing_ok=True)
