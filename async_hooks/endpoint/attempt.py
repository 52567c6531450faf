"""A run: one attempt at one envelope, in the fresh request that is its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..delivery import Addition, Terms
from ..envelope import Envelope
from ..errors import AsyncHooksError, DepthExceeded
from ..receivers import call, find_receiver, receivers_of
from ..state import State
from ..task import DISCARDED, AsyncTask, Discard, Retry, async_signal, ref_of
from ..validation import is_text
from ..verdict import Outcome, Verdict

#: Where a Run lies in its request's environ. No client can put one there: theirs are strings.
RUN = "async_hooks.run"

#: The route's endpoint, and the task that only asks whether this is the right place.
ENDPOINT = "async_hooks.run"
PING = "async_hooks.ping"

logger = logging.getLogger("async_hooks")


class Run:
    """One attempt at one envelope, from its verification to its verdict."""

    def __init__(self, state: State, envelope: Envelope) -> None:
        self.state = state
        self.envelope = envelope
        self.launching = False
        self.anonymous = True
        self.verdict: Verdict | None = None
        self.exception: BaseException | None = None
        self.result: Any = None
        #: With an outbox: what was launched, and what the run was split into, kept with its end.
        self.additions: list[Addition] = []
        self._budget = envelope.budget
        self._children: set[str] = set()
        self._receivers: dict[type[AsyncTask], Mapping[str, Callable[..., Any]]] = {}

    @property
    def is_split(self) -> bool:
        """Whether its receivers run elsewhere."""
        return bool(self._children)

    @property
    def is_after_the_end(self) -> bool:
        """Whether it only tells its task that a delivery was discarded."""
        return self.envelope.receiver == DISCARDED

    def fail(self, error: BaseException) -> None:
        """Take ``error`` for what became of the run."""
        self.exception = error
        self.verdict = _verdict_on(error)

    def receivers_of(self, task: type[AsyncTask]) -> Mapping[str, Callable[..., Any]]:
        """Return the receivers that ``task`` reaches, by name; looked up once in a run."""
        if task not in self._receivers:
            self._receivers[task] = receivers_of(self.state, task, anonymous=self.anonymous)
        return self._receivers[task]

    def send(self, task: type[AsyncTask], kwargs: Mapping[str, Any]) -> list[Any]:
        """Reach the receivers of the task's async signal: the only one here, several elsewhere."""
        if not self.launching:
            raise AsyncHooksError("'send' works inside run_action, not after it.")
        receivers = self.receivers_of(task)
        if self.envelope.receiver is not None:
            receivers = {self.envelope.receiver: _wanted(receivers, self.envelope.receiver, task)}
        if len(receivers) > 1:
            self._split(receivers)
            return []
        if not receivers and task.run_action is AsyncTask.run_action:
            _report_unheard(self.state, task)
        return [call(self.state.app, receiver, kwargs) for receiver in receivers.values()]

    def spend(self, what: str) -> None:
        if self._budget == 0:
            raise DepthExceeded(
                f"{what} would be one launch too many: what is launched may lead to "
                f"{self.state.config.max_launches} more, as 'ASYNC_HOOKS_MAX_LAUNCHES' allows. "
                "Do tasks launch each other?"
            )
        self._budget -= 1

    def share(self, count: int) -> int:
        share = self._budget // count
        self._budget -= share * count
        return share

    def _split(self, receivers: Mapping[str, Any]) -> None:
        for name in receivers:
            if self.state.ledger is not None and not is_text(name, 255):
                raise AsyncHooksError(
                    f"The receiver's name {name!r} is no text of up to 255 characters. "
                    "Give it one with hooks.receiver(…, name=…)."
                )
            child = self.envelope.for_receiver(name)
            if child.id not in self._children:
                self._children.add(child.id)
                self.spend(f"Receiver {name!r}")
                if self.state.ledger is None:
                    self.state.launcher.hand_over(child)
                else:
                    self.additions.append(Addition(child, self._terms_of_children()))

    def _terms_of_children(self) -> Terms:
        task = self.state.task_of(self.envelope)
        return Terms(task.queue, ref=ref_of(task, self.envelope)) if task else Terms()

    def taken_additions(self, *, with_children: bool) -> list[Addition]:
        """Return, once, what is to be kept, each with its share of the budget."""
        additions, self.additions = self.additions, []
        if not with_children:
            additions = [each for each in additions if each.envelope.parent_id != self.envelope.id]
        if not additions:
            return []
        share = self.share(len(additions))
        return [Addition(each.envelope._replace(budget=share), each.terms) for each in additions]


def _verdict_on(error: BaseException) -> Verdict:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Retry):
        return Verdict(Outcome.RETRY, text, error.after)
    return Verdict(Outcome.DISCARDED if isinstance(error, Discard) else Outcome.FAILED, text)


def _wanted(receivers: Mapping[str, Any], name: str, task: type[AsyncTask]) -> Any:
    receiver = find_receiver(receivers, name)
    if receiver is None:
        raise AsyncHooksError(unconnected(name, task))
    return receiver


def unconnected(name: str | None, task: type[AsyncTask]) -> str:
    """Say that nobody is there to receive."""
    return (
        f"No receiver {name!r} is connected to {async_signal(task.action).name!r}. "
        "Is its module imported by your app factory?"
    )


def _report_unheard(state: State, task: type[AsyncTask]) -> None:
    if task.name not in state.without_receivers:
        state.without_receivers.add(task.name)
        logger.warning(
            "Task %r ran and reached no receiver. Connect one to %r, or override run_action.",
            task.name,
            async_signal(task.action).name,
        )
