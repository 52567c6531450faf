"""Which processes of this machine live: each holds a file locked for as long as it exists.

The lock is the kernel's (flock) and ends with its holder, however that ends: the other processes of
the machine see it at once. On other machines they see that its heartbeats are missing.
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

#: Seconds after which nobody waits for a dead process any more.
_LONG = 3600.0


class ProcessLock:
    """The lock of process ``process_id`` of the app called ``name``, and a view of the others'.

    Without ``process_id`` it only views, as commands do. ``host_id`` is None where nobody can see.
    """

    def __init__(self, name: str, process_id: str | None = None) -> None:
        self.host_id: str | None = None
        self._folder: Path | None = None
        self._path: Path | None = None
        self._file: int | None = None
        with suppress(OSError):
            if (folder := runtime_dir(name)) is None:
                return
            if process_id is not None:
                self._path = path_of(folder, process_id)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.host_id = host_id_of(folder)
            self._folder = folder
            if process_id is not None:
                _sweep(folder)

    def has_ended(self, process_id: str, host_id: str | None) -> bool:
        """Tell whether another process is known to be dead; false where that can't be seen."""
        if self._folder is None or host_id != self.host_id:
            return False
        return _is_released(path_of(self._folder, process_id))

    def is_held(self, process_id: str) -> bool:
        """Tell whether another process is seen to live; false where that can't be seen."""
        if self._folder is None:
            return False
        path = path_of(self._folder, process_id)
        return path.exists() and not _is_released(path)

    def forget(self, process_id: str) -> None:
        """Remove what a dead process left, once nobody needs to know any more."""
        if self._folder is not None:
            _remove(path_of(self._folder, process_id))

    def close(self) -> None:
        """Close the file without ending the lock, as a forked child does with its parent's.

        The child's copy would hold the lock after its parent's death.
        """
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def end(self) -> None:
        """Remove the file: this process is gone, and nobody has to find out."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self.close()


def path_of(folder: Path, process_id: str) -> Path:
    return folder / f"{process_id}.lock"


def _sweep(folder: Path) -> None:
    """Remove what the long dead left, whom others may have rescued."""
    for path in folder.glob("*.lock"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LONG and _is_released(path):
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a process' lock, and the socket that it listened at."""
    path.unlink(missing_ok=True)
    path.with_suffix(".socket").unlink(missing_ok=True)


def _is_released(path: Path) -> bool:
    """Tell whether nobody holds ``path`` any more; if it was removed, that says nothing."""
    with suppress(OSError), path.open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
