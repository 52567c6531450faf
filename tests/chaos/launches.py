"""What is remembered of a scenario: what was launched, and who was struck."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Fate(StrEnum):
    ACCEPTED = "accepted"
    MAYBE = "may have been"
    NEVER = "never"


@dataclass
class Launch:
    number: int
    action: str
    fate: Fate
    ids: list[str] = field(default_factory=list)
    #: The HTTP status; 0: no answer came.
    status: int = 0


@dataclass
class Strike:
    """What was done to a process, until when: of a death, the moment itself."""

    kind: str
    pid: int
    at: float
    until: float
