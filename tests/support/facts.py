"""What an app's lifecycle signals said."""

from __future__ import annotations

import threading
from typing import Any


class Facts:
    """What the lifecycle signals said, in order, and a way to wait for it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()

    def note(self, name: str, facts: dict[str, Any]) -> None:
        with self._changed:
            self.said.append((name, facts))
            self._changed.notify_all()

    def of(self, name: str) -> list[dict[str, Any]]:
        return [facts for said, facts in list(self.said) if said == name]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Return what ``name`` said once it has said it ``count`` times; fail after 20 s."""
        with self._changed:
            met = self._changed.wait_for(lambda: len(self.of(name)) >= count, timeout=20)
        assert met, f"{name} was said {len(self.of(name))} times, not {count}: {self.said}"
        return self.of(name)
