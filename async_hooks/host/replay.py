"""Which tokens were consumed: one record for all processes of an app on one machine.

Whoever consumes a token first, has it: the endpoint before it runs the envelope, so that a replay
finds it consumed; or its sender, when a connection broke or the process ends, so that what had not
begun never will, and is safe to send again.

The record is a file for each span of time, in the folder that the processes share. To consume a
token is to append a line, its digest and a random text, and then to read what was appended: of
several lines with one digest, the first has consumed the token. The kernel puts appended lines in
an order that all processes and threads see alike, so nobody holds a lock: whoever is frozen, dies
or forks in the middle holds up nobody. A file is removed once no token of its span can be valid.
Where no folder can be shared, each process keeps a record of its own, and says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from ..errors import TokenReplayed
from .runtime_dir import host_id_of, runtime_dir

#: Seconds of a file's span, the same for every configuration, and how long one is kept at least.
_SPAN = 300
_KEPT = 3600

#: Characters of a digest and of a line, in hex.
_DIGEST, _LINE = 32, 48

#: Bytes to read at once.
_CHUNK = 64 * 1024

logger = logging.getLogger("async_hooks")


class ReplayGuard:
    """The record of the app called ``name``, for tokens that are valid for ``seconds``."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._oldest = int(max(seconds, _KEPT) // _SPAN) + 2
        self._spans: dict[int, _Span] = {}
        self._host_id: str | None = None
        #: None until it was tried.
        self._is_shared: bool | None = None

    @property
    def host_id(self) -> str | None:
        """Tells records apart that are not shared; None if this one is shared with nobody."""
        if self._is_shared is None:
            self._share()
        return self._host_id

    def consume(self, token: bytes, issued_at: float) -> bool:
        """Consume ``token``; return whether other processes will know.

        :raises TokenReplayed: if it was consumed before.
        """
        digest = hashlib.sha256(token).hexdigest()[:_DIGEST].encode()
        line = digest + os.urandom((_LINE - _DIGEST) // 2).hex().encode()
        number = int(issued_at // _SPAN)
        span = self._spans.get(number) or self._begin(number)
        is_shared = False
        if digest not in span.lines:
            try:
                is_shared = span.append(line)
            except OSError as error:
                self._stop_sharing(error)
        if span.lines.setdefault(digest, line) != line:
            raise TokenReplayed("The token was used before. Does a proxy repeat POSTs?")
        return is_shared

    def _begin(self, number: int) -> _Span:
        """Begin a span; let go of those that no valid token can lie in."""
        oldest = number - self._oldest
        for old in [span for span in list(self._spans) if span < oldest]:
            self._spans.pop(old, None)
        span = _Span()
        if (folder := self._share()) is not None:
            try:
                _remove_before(folder, oldest)
                span.open(folder / f"span-{number}")
            except OSError as error:
                self._stop_sharing(error)
        return self._spans.setdefault(number, span)

    def _share(self) -> Path | None:
        """Return the folder to share, which may be another than before: it was cleaned away."""
        folder = None
        try:
            if (folder := runtime_dir(self._name)) is not None:
                self._host_id = host_id_of(folder)
            self._is_shared = True
        except OSError as error:
            self._stop_sharing(error)
        return folder if self._is_shared else None

    def _stop_sharing(self, error: OSError) -> None:
        if self._is_shared is not False:
            logger.warning(
                "Each process keeps its own record of consumed tokens, because they can't share "
                "one: %s. Set 'TMPDIR' to a folder that this user can write to.",
                error,
            )
        self._is_shared = False
        self._host_id = None


class _Span:
    """The first line of each digest of one span of time, and the file, if any, they come from."""

    def __init__(self) -> None:
        self.lines: dict[bytes, bytes] = {}
        self._file: int | None = None
        self._read = 0

    def open(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, line: bytes) -> bool:
        """Append ``line``, and read what was appended before it; return whether there is a file.

        :raises OSError: if it can't be recorded for others.
        """
        if self._file is None:
            return False
        # Twice, because a line that a full disk cut short spoils the one after it.
        for _ in range(2):
            try:
                os.write(self._file, line + b"\n")
            finally:  # Because what others have consumed counts on a full disk too.
                self._read_on(self._file)
            if line[:_DIGEST] in self.lines:
                return True
        raise OSError("appended data is lost")

    def _read_on(self, file: int) -> None:
        """Read what was appended. Several threads may: each goes on where all before is read."""
        at, is_more = self._read, True
        while is_more:
            news = os.pread(file, _CHUNK, at)
            *lines, rest = news.split(b"\n")
            for line in lines:
                if len(line) == _LINE:
                    self.lines.setdefault(line[:_DIGEST], line)
            self._read = at = at + len(news) - len(rest)
            is_more = len(news) == _CHUNK and bool(lines)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)  # Not before: another thread may be about to append.


def _remove_before(folder: Path, oldest: int) -> None:
    for path in folder.glob("span-*"):
        if int(path.name.removeprefix("span-")) < oldest:
            path.unlink(missing_ok=True)
