"""What this machine remembers of a database that makes its tables by itself: that they were there.

A SQLite file that was removed, or its tables dropped, is made anew at the next use. Without this,
nobody would learn that all that waited in it is gone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection

from ...host.runtime_dir import runtime_dir
from .file import opened_path

_NAME = "tables"


class Presence:
    """The memory of one database's tables. Where the machine has no place for it, there is none.

    It is a file: empty while all is well, else it says since when the tables are known to be lost.
    """

    def __init__(self, connection: Connection) -> None:
        """``connection`` has the database open. One in memory has no name, and no memory here."""
        self._path: Path | None = None
        self._where = connection.engine.url.render_as_string(hide_password=True)
        is_sqlite = connection.dialect.name == "sqlite"
        file = opened_path(connection.connection.driver_connection) if is_sqlite else None
        with suppress(OSError):
            if file is not None and (folder := runtime_dir(os.path.realpath(file))):
                self._path = folder / _NAME
        #: Whether they had been there; whoever makes them asks before anybody else may note it.
        self.was_known = self.is_known

    @property
    def is_known(self) -> bool:
        """Whether the tables have been there, as far as this machine remembers."""
        return self._path is not None and self._path.exists()

    def note(self) -> None:
        """Remember that the tables are there."""
        if not self.is_known:
            self._write("")

    def note_loss(self) -> str:
        """Remember that they were lost, until :meth:`forget_loss`; return what to say of it."""
        self._write(datetime.now(UTC).isoformat(sep=" ", timespec="seconds"))
        return self.loss or self._explained("just now")

    def forget_loss(self) -> None:
        self._write("")

    @property
    def loss(self) -> str | None:
        """What was lost, and what to do about it; None if nothing was."""
        with suppress(OSError):
            if self._path is not None and (since := self._path.read_text()):
                return self._explained(since)
        return None

    def _explained(self, since: str) -> str:
        return (
            f"The outbox's tables in {self._where} had vanished, and were made anew at {since}: "
            "somebody dropped them, or removed the file. What waited there is lost, unless you "
            "restore a backup. Once that is settled, run: flask async-hooks init-db"
        )

    def _write(self, text: str) -> None:
        with suppress(OSError):
            if self._path is not None:
                self._path.write_text(text)
