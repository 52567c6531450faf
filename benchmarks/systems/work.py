"""What is deferred, by whatever system: the least that a task can do."""

from __future__ import annotations

from ..app import Lead
from ..notes import note


def work(lead: Lead) -> None:
    note(lead["number"])
