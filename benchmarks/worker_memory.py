"""The memory of a worker's process while it carries a large backlog of tiny deliveries."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from .ledgers import ledger_on, load_waiting
from .ours import SQLITE_WORKERS
from .server import fresh_home, serving
from .systems.hooks import LeadTask

#: Seconds between two looks, and those after which a worker that does nothing is given up.
_LOOK, _PATIENCE = 0.25, 60.0


def resident(deliveries: int) -> list[tuple[int, int]]:
    """Have one worker carry so many; return how many were done and its bytes, look by look."""
    system = replace(SQLITE_WORKERS, workers=SQLITE_WORKERS.workers[:1])
    with fresh_home(system) as home:
        with ledger_on(home.database_url, home.folder) as ledger:
            load_waiting(ledger, deliveries, task=LeadTask.name)
        with serving(system, home, workers=1) as site:
            samples = [(0, 0)]
            moved_at = time.monotonic()
            while (done := site.notes.count) < deliveries:
                if done > samples[-1][0]:
                    moved_at = time.monotonic()
                elif time.monotonic() - moved_at > _PATIENCE:
                    raise TimeoutError(f"The worker stopped after {done} of {deliveries}.")
                time.sleep(_LOOK)
                samples.append((done, _resident_of(_child_of(site.pids[0]))))
    return [(done, size) for done, size in samples if done and size]


def _child_of(worker: int) -> int:
    """Return the pid of the process that works; the command's own only watches."""
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return int(children[0]) if children else worker


def _resident_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
