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
import stat
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from .errors import TokenReplayed

if sys.platform != "win32":
    import fcntl

_SIZE = 16

logger = logging.getLogger("async_hooks")


class Consumed:
    """The record of the app called ``name``, for tokens that are valid for ``seconds``."""

    def __init__(self, name: str, seconds: float) -> None:
        self._seconds = seconds
        self._folder = _folder(name)
        self._records: dict[int, _Record] = {}

    @cached_property
    def place(self) -> str | None:
        """Tells records apart that are not shared; None if this one is shared with nobody."""
        return _place(self._folder) if self._folder is not None else None

    def take(self, token: bytes, issued_at: float) -> None:
        """Consume ``token``.

        :raises TokenReplayed: if it was consumed before.
        """
        digest = hashlib.sha256(token).digest()[:_SIZE]
        record = self._records.get(os.getpid())
        if record is None:  # A forked child reads and locks through files of its own.
            mine = _Record(self._folder, self._seconds)
            record = self._records.setdefault(os.getpid(), mine)
        if not record.take(digest, issued_at):
            raise TokenReplayed("The token was used before. Does a proxy repeat POSTs?")


class _Record:
    """One process's view of the record."""

    def __init__(self, folder: Path | None, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self._lock = threading.Lock()
        self._spans: dict[int, _Span] = {}

    def take(self, digest: bytes, issued_at: float) -> bool:
        number = int(issued_at // self._seconds)
        with self._lock:
            if number not in self._spans:
                self._turn(number)
            return self._spans[number].take(digest)

    def _turn(self, number: int) -> None:
        """Begin the span ``number``; let go of those that no valid token can lie in."""
        for old in [span for span in self._spans if span < number - 2]:
            self._spans.pop(old).close()
        for path in self._folder.glob("span-*") if self._folder else ():
            if int(path.name.removeprefix("span-")) < number - 2:
                path.unlink(missing_ok=True)
        file = self._folder / f"span-{number}" if self._folder else None
        self._spans[number] = _Span(file)


class _Span:
    """The digests of one span of time: a set, and the file that it is a copy of."""

    def __init__(self, path: Path | None) -> None:
        self._digests: set[bytes] = set()
        self._read = 0
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._file = os.open(path, flags, 0o600) if path is not None else None

    def take(self, digest: bytes) -> bool:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._catch_up(self._file)
                if digest not in self._digests:
                    os.write(self._file, digest)
            except OSError as error:
                logger.error("The record of consumed tokens can't be kept: %s.", error)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        is_first = digest not in self._digests
        self._digests.add(digest)
        return is_first

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


def _folder(name: str) -> Path | None:
    """Return the private folder of the app ``name``, or None where there can't be one."""
    if sys.platform == "win32":  # It has no flock; each process keeps a record of its own.
        return None
    try:
        home = Path(tempfile.gettempdir()) / f"async_hooks-{os.geteuid()}"
        folder = home / hashlib.sha256(name.encode()).hexdigest()[:_SIZE]
        for path in (home, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            _check_private(path)
        return folder
    except OSError as error:
        logger.warning(
            "Each process keeps its own record of consumed tokens, because they can't share one: "
            "%s. Set 'TMPDIR' to a folder that this user can write to.",
            error,
        )
        return None


def _check_private(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{str(path)!r} is not a folder of this user's alone")


def _place(folder: Path) -> str:
    """Return what names this folder, and no other on any machine."""
    path = folder / "place"
    try:
        return path.read_text()
    except FileNotFoundError:
        draft = folder / f"place-{os.urandom(8).hex()}"
        draft.write_text(os.urandom(16).hex())
        with suppress(FileExistsError):  # Of several at once, the first one's counts.
            os.link(draft, path)
        draft.unlink()
        return path.read_text()
