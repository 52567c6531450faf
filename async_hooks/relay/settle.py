"""Settling: writing down what became of an attempt, by the rules of ``settlement``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from random import uniform
from typing import TYPE_CHECKING

from flask import Flask

from ..config import Config
from ..delivery import Addition, Terms
from ..envelope import Envelope, new_id
from ..errors import OutboxUnavailable, TimedOut, TransportError
from ..receivers import options_of
from ..signals import send_in_context, task_discarded, task_failed, task_retrying
from ..state import state_of
from ..task import DISCARDED, AsyncTask
from ..validation import LONGEST
from ..verdict import Outcome, Verdict
from .notes import Notes
from .outcomes import CRASHED, Action, Rule, rule_for

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.ledger import Ledger

Ending = Verdict | TransportError | None

#: Seconds that a kind is left alone after a process said that it does not know it.
_PARKED = 30.0

#: Verdicts that are given before an attempt begins: they say nothing of an earlier copy of it.
_BEFORE = (Outcome.BUSY, Outcome.EXPIRED)

logger = logging.getLogger("async_hooks")


class Settler:
    """Settles for one process after another; ``notes`` are the current one's."""

    def __init__(
        self,
        app: Flask,
        config: Config,
        ledger: Ledger,
        notes: Callable[[], Notes],
        monotonic: Callable[[], float],
    ) -> None:
        self._app = app
        self._config = config
        self._ledger = ledger
        self._notes = notes
        self._monotonic = monotonic

    def settle(self, envelope: Envelope, ending: Ending) -> bool:
        """Settle, and wait as long as the outbox can't be written; false if it never could."""
        notes, pause = self._notes(), 0.1
        while True:
            try:
                self.record(envelope, ending)
                return True
            except OutboxUnavailable as error:
                if notes.ended.is_set():
                    logger.error("What became of envelope %s is not written.", envelope.id)
                    return False
                notes.problem = str(error)
                notes.ended.wait(pause * uniform(0.5, 1.5))  # noqa: S311
                pause = min(2 * pause, 2.0)

    def record(self, envelope: Envelope, ending: Ending) -> None:
        """Settle.

        :raises OutboxUnavailable: if that can't be written now.
        """
        rule, error = rule_for(ending), in_words(ending)
        if isinstance(ending, TransportError):
            self._settle_unheard(envelope, rule, error, ending)
        elif rule.action is Action.COMPLETE and isinstance(ending, Verdict):
            self._arrived(envelope)
            if not ending.is_recorded:
                self._ledger.complete_alone(envelope)
        elif rule.action is Action.WATCH:
            self._await(envelope)
        elif rule.action is Action.PARK:
            kind = (envelope.task, envelope.receiver or "")
            self._notes().parked[kind] = self._monotonic() + _PARKED
            logger.warning("Envelope %s waits for code that knows it: %s", envelope.id, error)
            self._ledger.give_back([envelope], begun=True)
        elif rule.action is Action.WAIT:
            begun = isinstance(ending, Verdict) and ending.outcome not in _BEFORE
            if not self._give_back(envelope, rule, error, begun=begun):
                self._await(envelope)
        else:
            self._arrived(envelope)
            self.fail(envelope, rule, error, ending.after if isinstance(ending, Verdict) else None)

    def _settle_unheard(
        self, envelope: Envelope, rule: Rule, error: str, ending: TransportError
    ) -> None:
        """Settle an attempt of which its endpoint said nothing."""
        if self._give_back(envelope, rule, error, begun=False):
            return
        if not isinstance(ending, TimedOut) and self._may_still_run(envelope):
            self._await(envelope)
        else:
            self.fail(envelope, rule, error, failure=ending)

    def fail(
        self,
        envelope: Envelope,
        rule: Rule,
        error: str,
        after: float | None = None,
        *,
        failure: TransportError | None = None,
    ) -> None:
        """End an attempt that began and did not succeed: retried ``after`` seconds, or discarded.

        ``failure`` is told where no endpoint has told it.
        """
        before = self._ledger.counters(envelope)
        if before is None:  # Another attempt has taken its place; this one does not count.
            return
        failures, crashes = before
        crashed = rule.action is Action.AT_ONCE
        # Decided out of the transaction: it asks the task, and the fence keeps the answer true.
        run_at = self._again_at(envelope, rule, after, failures + (not crashed), crashes + crashed)
        error = str(state_of(self._app).redact(error))
        if not self._ledger.fail(
            envelope,
            error,
            run_at,
            crashed=crashed,
            on_discard=lambda discarded: self._on_discard(discarded, error),
        ):
            return
        if failure is not None:
            send_in_context(task_failed, self._app, envelope=envelope, exception=failure)
        if run_at is None:
            send_in_context(task_discarded, self._app, envelope=envelope, error=error)
        else:
            again_at = datetime.fromtimestamp(run_at, UTC)
            send_in_context(task_retrying, self._app, envelope=envelope, run_at=again_at)

    def record_crash(self, envelope: Envelope) -> None:
        """Count the death of the process that ran ``envelope``."""
        error = "The process that ran it died."
        self.fail(envelope, CRASHED, error, failure=TransportError(error))

    def _again_at(
        self, envelope: Envelope, rule: Rule, after: float | None, failures: int, crashes: int
    ) -> float | None:
        """Return when to try again after so many failures and crashes; None to discard."""
        now = self._ledger.now()
        if envelope.receiver == DISCARDED or rule.action is Action.DISCARD:
            return None
        if rule.action is Action.AT_ONCE:
            return now if crashes < self._config.max_crashes else None
        options = options_of(state_of(self._app), envelope)
        if failures >= options.max_attempts:
            return None
        wait = options.backoff(failures) if after is None else after
        return now + min(max(0.0, wait), LONGEST)

    def _on_discard(self, envelope: Envelope, error: str) -> list[Addition]:
        """Return what tells the task, in a run of its own, that its delivery is discarded."""
        task = state_of(self._app).task_of(envelope)
        if task is None or task.discarded is AsyncTask.discarded or envelope.receiver == DISCARDED:
            return []
        body = json.dumps({"data": envelope.data, "error": error}, separators=(",", ":"))
        told = envelope._replace(
            id=new_id(), body=body, receiver=DISCARDED, parent_id=None, is_awaited=False
        )
        return [Addition(told, Terms(task.queue))]

    def _give_back(self, envelope: Envelope, rule: Rule, error: str, *, begun: bool) -> bool:
        """Let it be sent again with nothing used up; false if it began, and not ``begun``."""
        notes = self._notes()
        after = notes.pause_of(envelope) if rule.slows else None
        if not self._ledger.give_back([envelope], begun=begun, after=after):
            return False
        if rule.slows and notes.breaker.trip(error, self._monotonic()):
            logger.warning("Envelope %s did not arrive, and waits: %s", envelope.id, error)
        return True

    def _arrived(self, envelope: Envelope) -> None:
        self._notes().breaker.reset()
        self._notes().forget_pause(envelope)

    def _await(self, envelope: Envelope) -> None:
        """Leave the attempt to the process that runs it, for as long as it may take."""
        timeout = options_of(state_of(self._app), envelope).timeout
        self._notes().awaited[envelope.id] = (envelope, self._monotonic() + timeout)
        self._notes().notifier.ring()

    def _may_still_run(self, envelope: Envelope) -> bool:
        """Tell whether the process that began with it is seen to live: its connection was cut."""
        me, holder = self._ledger.me, self._ledger.holder(envelope)
        if holder is None or holder == me.relay_id:
            return me.runs(envelope)
        return me.liveness.is_held(holder)


def in_words(ending: Ending) -> str:
    if isinstance(ending, Verdict):
        return ending.error or ending.outcome
    return "Nobody knows what became of it." if ending is None else str(ending)
