"""A shop whose outbox is its own database, and whose deliveries run when the test wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from async_hooks.delivery import Claim
from async_hooks.envelope import Envelope
from async_hooks.receivers import kinds_of
from async_hooks.state import state_of
from async_hooks.transports.in_process import InProcess
from async_hooks.verdict import Verdict
from tests.support.joined_shop import Shop


class Runner(Shop):
    """A shop whose deliveries run when the test wants.

    All that these tests know of the library's inside stands here.
    """

    def receive(self, receiver: Callable[..., Any], name: str = "receiver") -> None:
        self.hooks.receiver(self.action, name=name, backoff=lambda attempt: 0)(receiver)

    def dispatch(self, **options: Any) -> str:
        """Launch, outside of any request."""
        with self.app.app_context():
            return self.task.dispatch({"n": 1}, **options)

    def states(self) -> dict[int, tuple[str, int]]:
        """Return state and attempts of each number."""
        return {each.data["n"]: (each.state, each.attempts) for each in self.deliveries()}

    def claim(self) -> list[Envelope]:
        state = state_of(self.app)
        assert state.store is not None
        return state.store.claim(Claim("a process", "a lease"), kinds_of(state), 100)[0]

    def run(self, envelope: Envelope) -> Verdict:
        return InProcess(self.app).send(envelope)

    def work(self, then: Callable[[], object] = lambda: None) -> list[Verdict]:
        """Run what is due, each once, call ``then`` after each, and settle it."""
        relay: Any = state_of(self.app).relay
        verdicts = []
        for envelope in self.claim():
            verdicts.append(self.run(envelope))
            then()
            relay.source.settle(envelope, verdicts[-1])
        return verdicts

    def steal(self) -> None:
        """Let what executes be another's, as after a lease that ran out."""
        self.write("UPDATE async_hooks_deliveries SET lease = 'another' WHERE state = 'executing'")
