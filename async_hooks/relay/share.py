"""What a worker claims of an outbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Share(NamedTuple):
    """What a worker claims: ``queues`` in that order (None: all as one), ``quota`` at most.

    More, unless it is ``strict``, while an overdue run keeps the process from ending.
    ``idle`` is called when it has nothing: with True if the quota is used up, with False if
    nothing is due. What is claimed while ``accepts`` returns false goes back.
    """

    name: str = ""
    queues: Sequence[str] | None = None
    quota: int | None = None
    strict: bool = False
    idle: Callable[[bool], None] | None = None
    accepts: Callable[[], bool] = lambda: True
