"""What processes use, as /proc tells it: those that were started, and all below them."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

#: How long idle processes are observed, and the share of a core that is next to nothing.
_OBSERVED_SECONDS, _IDLE = 0.3, 0.1


def cpu_seconds(roots: Collection[int]) -> float:
    """Return user and system time, that of children that have ended included."""
    stats = _stats()
    return sum(sum(map(int, stats[pid][11:15])) for pid in _tree(roots, stats)) / _TICKS


def memory_megabytes(roots: Collection[int]) -> float:
    """Return the sum of PSS: a page that several processes share counts once in all."""
    return sum(map(_pss_kilobytes, _tree(roots, _stats()))) / 1024


def await_idle(roots: Collection[int], *, patience: float = 10.0) -> None:
    """Return when these processes have next to nothing to do, or after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    before = cpu_seconds(roots)
    while time.monotonic() < deadline:
        time.sleep(_OBSERVED_SECONDS)
        now = cpu_seconds(roots)
        if now - before <= _OBSERVED_SECONDS * _IDLE:
            return
        before = now


def worker_resident_bytes(command: int) -> int:
    """Return what is resident in the process that works; the command's own only supervises it."""
    children = Path(f"/proc/{command}/task/{command}/children").read_text().split()
    worker = children[0] if children else command
    return int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * _PAGE


def _tree(roots: Collection[int], stats: dict[int, list[str]]) -> Iterator[int]:
    """Give the pids of ``roots`` and of all their descendants."""
    found = {pid for pid in roots if pid in stats}
    while found:
        yield from found
        found = {pid for pid, fields in stats.items() if int(fields[1]) in found}


def _stats() -> dict[int, list[str]]:
    """Return what follows the name in each process's stat: the state, the parent's pid, …"""
    stats = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended meanwhile.
            stats[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
    return stats


def _pss_kilobytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
