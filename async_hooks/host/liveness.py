"""Who lives? A file that each relay holds locked as long as its process does.

The lock is the kernel's (flock) and ends with its holder, however that dies: the others on the
machine see it at once. What they can't see, on other machines, they learn by its silence.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from .runtime_dir import host_id_of, runtime_dir

if sys.platform != "win32":
    import fcntl


#: Seconds after which nobody waits for a dead relay any more.
_LONG = 3600.0


class ProcessLock:
    """The line of the relay ``relay_id``. ``place`` is None where nobody can see it."""

    def __init__(self, name: str, relay_id: str) -> None:
        self.host_id: str | None = None
        self._file: int | None = None
        self._path: Path | None = None
        try:
            self._folder = runtime_dir(name)
            if self._folder is None:
                return
            self._path = path_of(self._folder, relay_id)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.host_id = host_id_of(self._folder)
            _sweep(self._folder)
        except OSError:
            self._folder = None

    def has_ended(self, relay_id: str, host_id: str | None) -> bool:
        """Tell whether another relay is known to be dead; false where that can't be seen."""
        if self._folder is None or host_id is None or host_id != self.host_id:
            return False
        return _is_released(path_of(self._folder, relay_id))

    def is_held(self, relay_id: str) -> bool:
        """Tell whether another relay is seen to live; false where that can't be seen."""
        if self._folder is None:
            return False
        path = path_of(self._folder, relay_id)
        return path.exists() and not _is_released(path)

    def forget(self, relay_id: str) -> None:
        """Remove what a dead relay left, once nobody needs to know any more."""
        if self._folder is not None:
            _remove(path_of(self._folder, relay_id))

    def abandon(self) -> None:
        """Close it without ending it: a forked child's copy would outlive its parent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def end(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self.abandon()


def path_of(folder: Path, relay_id: str) -> Path:
    return folder / f"relay-{relay_id}"


def _remove(line: Path) -> None:
    """Remove a lifeline, and the bell that lies beside it."""
    line.unlink(missing_ok=True)
    line.with_name(line.name.replace("relay-", "bell-", 1)).unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what the long dead left, whom others may have buried."""
    for path in folder.glob("relay-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LONG and _is_released(path):
                _remove(path)


def has_ended(name: str, relay_id: str, host_id: str | None) -> bool:
    """Tell the same to who has no lifeline of its own, e.g. a command."""
    try:
        folder = runtime_dir(name)
        if folder is None or host_id is None or host_id_of(folder) != host_id:
            return False
    except OSError:
        return False
    return _is_released(path_of(folder, relay_id))


def _is_released(path: Path) -> bool:
    """Tell whether nobody holds ``path`` any more."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # Removed, by whomever: that says nothing about its owner.
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(file)
