"""Where the chaos app can be told to die, and what else it is made to believe.

A process dies at a seam when it finds, and takes away, the file ``die-<seam>``: so only one does.
This module is imported before the library, which may keep what it finds in ``time``.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEDGER = Path(os.environ["LEDGER"])
FOLDER = LEDGER.parent

_real_time = time.time


def note(what: str, **facts: Any) -> None:
    """Append a line to the ledger, whole and on disk, whatever happens next."""
    line = {"what": what, **facts, "pid": os.getpid(), "at": time.monotonic()}
    descriptor = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, json.dumps(line).encode() + b"\n")
    os.fsync(descriptor)
    os.close(descriptor)


def may_die(seam: str) -> None:
    """Die here and now if that is ordered, and this server is one that may."""
    if os.environ.get("CHAOS_IMMORTAL"):
        return
    try:
        (FOLDER / f"die-{seam}").unlink()
    except FileNotFoundError:
        return
    note("died", seam=seam)
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: Any, name: str, *, before: str = "", after: str = "") -> None:
    """Let ``owner.name`` have a seam before and after it."""
    inner: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            may_die(before)
        result = inner(*args, **kwargs)
        if after:
            may_die(after)
        return result

    setattr(owner, name, wrapped)


def move_clock() -> None:
    """Let the wall clock be wrong by the seconds in the file ``clock``."""
    path = FOLDER / "clock"

    def moved() -> float:
        try:
            return _real_time() + float(path.read_text() or 0)
        except FileNotFoundError:
            return _real_time()

    time.time = moved


if os.environ.get("CHAOS_CLOCK"):
    move_clock()
