"""A folder that the processes of one app on one machine share, and nobody else can enter."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def runtime_dir(name: str) -> Path | None:
    """Return the folder of the app ``name``, which only this user can enter; None on Windows.

    :raises OSError: where there can't be one.
    """
    if sys.platform == "win32":  # It has neither flock nor the permissions that are checked.
        return None
    home = Path(tempfile.gettempdir()) / f"async_hooks-{os.geteuid()}"
    folder = home / hashlib.sha256(name.encode()).hexdigest()[:16]
    for path in (home, folder):
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{str(path)!r} is not a folder of this user's alone")
    return folder


def host_id_of(folder: Path) -> str:
    """Return the id of this folder, which no other folder has on any machine."""
    path = folder / "host_id"
    if not path.exists():
        draft = folder / f"host_id-{os.urandom(8).hex()}"
        draft.write_text(os.urandom(16).hex())
        with suppress(FileExistsError):  # Of several at once, the first one's counts.
            os.link(draft, path)
        draft.unlink()
    return path.read_text()
