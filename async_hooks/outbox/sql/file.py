"""SQLite's file: nobody else's to read, and told from another that comes to lie at its path."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sqlalchemy import URL, exc

from ...errors import ConfigError

#: What SQLite writes beside a file, by what it adds to its name.
_BESIDE = ("-wal", "-shm", "-journal")


class FileReplaced(Exception):
    """A file was removed or replaced while a connection had it open: what it wrote is gone."""

    def __init__(self) -> None:
        super().__init__("its file was removed or replaced while it was open")

    def as_lost(self) -> exc.DBAPIError:
        """Return what SQLAlchemy would raise for a connection that is lost."""
        return exc.DBAPIError(None, None, self, connection_invalidated=True)


class OpenFile:
    """The file at ``path`` and its write-ahead log, as a connection has just opened them.

    ``named`` is how the app calls it: a link may lead elsewhere later.
    """

    def __init__(self, path: str, named: Path | None = None) -> None:
        self._path = path
        self._log_path = f"{path}-wal"  # Beside the file itself, wherever a link to it lies.
        self._file = _identity(path)
        # A relative name means something else once the process is in another folder.
        if named is not None and named.is_absolute() and _identity(str(named)) == self._file:
            self._path = str(named)
        #: None until there is one; then it stays for as long as a connection is open.
        self._log = _identity(self._log_path)

    def is_replaced(self) -> bool:
        """Tell whether nothing, or something else, lies where they lay."""
        if self._file is None or _identity(self._path) != self._file:
            return True
        log = _identity(self._log_path)
        if self._log is None:
            self._log = log
        return log != self._log

    def save(self, driver: Any) -> bool:
        """Write what only the log holds into the file, by a connection that has both open.

        Return whether all of it is there now. None is if somebody else has begun a new log already.
        """
        if _identity(self._path) != self._file or _identity(self._log_path) is not None:
            return False
        driver.rollback()
        busy, frames, written = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return not busy and bool(frames == written)


def opened_path(driver: Any) -> str | None:
    """Return the absolute path of the file that a connection has open; None if it has none."""
    rows = driver.execute("PRAGMA database_list").fetchall()
    return next((path for _, name, path in rows if name == "main"), None) or None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def path_of(url: URL) -> Path | None:
    """Return the path of the SQLite file that ``url`` names; None if it names none."""
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or ":memory:" in name:
        return None
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:"))
        if name.startswith("//"):  # What follows is a host, usually empty.
            name = f"/{name[2:].partition('/')[2]}"
    return Path(name)


def secure(path: Path) -> None:
    """Make sure that the file at ``path``, and what SQLite keeps beside it, is this user's alone.

    It is made if it is missing. One that exists is not opened here: to close it again would end
    the locks that SQLite holds on it.

    :raises ConfigError: if it is a symbolic link, which may lead anywhere, or can't be secured.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for name in (str(path), *(f"{path}{suffix}" for suffix in _BESIDE)):
        try:
            mode = os.lstat(name).st_mode
            if not stat.S_ISREG(mode):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
                raise ConfigError(
                    f"'ASYNC_HOOKS_OUTBOX': {name!r} is {what}. Name the file itself."
                )
            if mode & 0o077:
                os.chmod(name, 0o600)
        except FileNotFoundError:
            continue
        except PermissionError:
            raise ConfigError(
                f"'ASYNC_HOOKS_OUTBOX': others may read {name!r}, and it belongs to another user. "
                f"Use its owner's account, or let its owner run: chmod 600 {name}"
            ) from None
