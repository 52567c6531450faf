"""One attempt at one envelope, in the fresh request that is its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from ..actions import async_signal
from ..current import CurrentEnvelope
from ..envelope import Envelope
from ..errors import AsyncHooksError, DepthExceeded, Interrupted
from ..log import ids, one_line
from ..raised import Continue, Discard, Retry
from ..receivers import call, find_receiver, options_of, receivers_of
from ..state import State
from ..task import AsyncTask
from ..texts import UNSHOWN, error_text, repr_of
from ..validation import is_text, seconds_or_zero
from ..verdict import Outcome, Verdict
from .checkpoints import Checkpoints, Interruption

#: Where an Attempt lies in its request's environ. No client can put one there: theirs are strings.
ATTEMPT = "async_hooks.attempt"

#: The route's endpoint, and the task that only asks whether this is the right place.
ENDPOINT = "async_hooks.run"
PING = "async_hooks.ping"

#: Outcomes of a run that ended early, and did not fail.
GOES_ON = (Outcome.INTERRUPTED, Outcome.UNWRITTEN, Outcome.CONTINUED)

logger = logging.getLogger("async_hooks")


class Slot:
    """A place among the runs that an endpoint takes at once; ``until`` it is in time."""

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until


class Attempt:
    """One attempt at one envelope, from its verification to its verdict."""

    def __init__(self, state: State, envelope: Envelope) -> None:
        self.state = state
        self.envelope = envelope
        #: What the run sees of it.
        self.current = CurrentEnvelope(*envelope)
        #: None if this app has none of that name.
        self.task: type[AsyncTask] | None = state.tasks.find(envelope.task)
        self.launching = False
        self.anonymous = True
        self.verdict: Verdict | None = None
        self.exception: BaseException | None = None
        self.result: Any = None
        #: The one receiver that ran here, if one did.
        self.reached: str | None = None
        #: With an outbox: what was launched, and what the run was split into, kept with its end.
        self.additions: list[Envelope] = []
        #: The ids of the children whose receivers run elsewhere.
        self.children: set[str] = set()
        #: Where it came in by a request.
        self.slot: Slot | None = None
        self.checkpoints = Checkpoints(self)
        self._launched = 0
        self._receivers: dict[type[AsyncTask], Mapping[str, Callable[..., Any]]] = {}

    @cached_property
    def timeout(self) -> float:
        """Seconds after which the run is overdue."""
        return options_of(self.state, self.envelope).timeout

    def succeed(self) -> None:
        """Take it that the run came to its end, unless a step of it was lost before."""
        interruption = self.checkpoints.interruption
        if interruption is Interruption.UNWRITTEN:
            self.verdict = Verdict(Outcome.UNWRITTEN, f"It went on although {interruption}.")
        else:
            self.verdict = Verdict(Outcome.COMPLETED)

    def fail(self, error: BaseException) -> None:
        """Take ``error`` for what became of the run."""
        self.exception = error
        text, kind = error_text(error), type(error)  # An object may lie about its class.
        interruption = self.checkpoints.interruption
        if issubclass(kind, Interrupted) and interruption is not None:
            is_lost = interruption is Interruption.UNWRITTEN
            self.verdict = Verdict(Outcome.UNWRITTEN if is_lost else Outcome.INTERRUPTED, text)
        elif issubclass(kind, Continue):
            self.verdict = Verdict(Outcome.CONTINUED, text, _wish_of(error, self.envelope))
        elif issubclass(kind, Retry):
            self.verdict = Verdict(Outcome.RETRY, text, _wish_of(error, self.envelope))
        else:
            is_final = issubclass(kind, Discard)
            self.verdict = Verdict(Outcome.DISCARDED if is_final else Outcome.FAILED, text)

    def result_of_root(self) -> Any:
        """Return what the launch came to that this run tells of."""
        store, root = self.state.store, self.envelope.root_id
        return store.result_of(root) if store is not None and root is not None else None

    def take_launches(self) -> list[Envelope]:
        """Return, once, what the run has launched; what it was split into is for its completion."""
        launches = [each for each in self.additions if each.id not in self.children]
        self.additions = [each for each in self.additions if each.id in self.children]
        return launches

    def receivers_of(self, task: type[AsyncTask]) -> Mapping[str, Callable[..., Any]]:
        """Return the receivers that ``task`` reaches, by name; looked up once in a run."""
        if task not in self._receivers:
            self._receivers[task] = receivers_of(self.state, task, anonymous=self.anonymous)
        return self._receivers[task]

    def send(self, task: type[AsyncTask], kwargs: Mapping[str, Any]) -> list[Any]:
        """Reach the receivers of the task's async signal: the only one here, several elsewhere."""
        if not self.launching or self.envelope.tells_of_an_end:
            raise AsyncHooksError("'send' works inside run_action, not after it.")
        receivers, name = self.receivers_of(task), self.envelope.receiver
        if name is not None:
            receiver = find_receiver(receivers, name)
            if receiver is None:
                raise AsyncHooksError(unconnected(name, task))
            receivers = {name: receiver}
        if len(receivers) > 1:
            self._split(receivers)
            return []
        if not receivers and task.run_action is AsyncTask.run_action:
            _report_unheard(self.state, task)
        for name in receivers:
            self.reached = name
        return [call(self.state.app, receiver, kwargs) for receiver in receivers.values()]

    def count_launch(self, task: type[AsyncTask]) -> None:
        """Count a launch of ``task`` by this run.

        :raises DepthExceeded: if it has made as many as are allowed, or is too deep for any.
        """
        config, depth = self.state.config, self.envelope.depth
        self._launched += 1
        if depth >= config.max_depth:
            raise DepthExceeded(
                f"Task {task.name!r} was launched {depth + 1} runs deep; "
                f"'ASYNC_HOOKS_MAX_DEPTH' allows {config.max_depth}. Does it launch itself?"
            )
        if self._launched > config.max_launches:
            raise DepthExceeded(
                f"Task {task.name!r} would be one launch too many: this run has made "
                f"{config.max_launches}, all that 'ASYNC_HOOKS_MAX_LAUNCHES' allows."
            )

    def _split(self, receivers: Iterable[str]) -> None:
        for child in children_of(self.state, self.envelope, receivers):
            if child.id not in self.children:
                self.children.add(child.id)
                if self.state.store is None:
                    self.state.launcher.hand_over(self.state, child)
                else:
                    self.additions.append(child)


def children_of(state: State, envelope: Envelope, receivers: Iterable[str]) -> list[Envelope]:
    """Return what reaches each of ``receivers``, by name, in a request of its own.

    :raises AsyncHooksError: if an outbox can't keep a name.
    """
    names = [*receivers]
    for name in names:
        if state.store is not None and not is_text(name, 255):
            raise AsyncHooksError(
                f"The receiver's name {name!r} is no text of up to 255 characters. "
                "Give it one with hooks.receiver(…, name=…)."
            )
    return [envelope.for_receiver(name, position) for position, name in enumerate(names)]


def _wish_of(error: Any, envelope: Envelope) -> float | None:
    """Return the seconds after which a Retry or Continue asks to be run; None where it has none."""
    after: Any = UNSHOWN
    try:
        after = error.after
        return None if after is None else seconds_or_zero(after)
    except Exception:  # Set after it was made, or by a subclass.
        then = "it goes on at once" if issubclass(type(error), Continue) else "its backoff decides"
        what = "Envelope %s: its 'after' is no time to wait, but %s; %s."
        logger.warning(what, envelope.id, one_line(repr_of(after)), then, extra=ids(envelope))
        return None


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
