"""Settling: recording what became of an attempt, by the rules of ``outcomes``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from random import uniform
from typing import TYPE_CHECKING

from flask import Flask

from ..config import Config
from ..delivery import DeliveryState, Ending
from ..envelope import DISCARDED, Envelope
from ..errors import OutboxUnavailable, TransportError
from ..log import ids
from ..receivers import options_of
from ..signals import send_in_context, task_discarded, task_failed, task_retrying
from ..state import Result, state_of
from ..texts import UNSHOWN, text_of
from ..validation import LONGEST
from ..verdict import Outcome, Verdict
from .notice import notices_of
from .outcomes import CRASHED, RULES, Action, Rule, rule_for
from .process import Process, pause_after

if TYPE_CHECKING:  # What SQLAlchemy is needed for is made elsewhere.
    from ..outbox.store import Store

#: Seconds that a kind is left alone after a process said that it does not know it.
_PARKED = 30.0

#: Seconds that a delivery is left alone which can't be settled.
_ASIDE = 60.0

#: How often the app may answer in a task's place until that counts: for some 15 minutes.
_MOST_REFUSALS = 20

#: The most seconds that an attempt is waited for of which nobody says that it began.
LONGEST_WAIT = 3600.0

#: Verdicts that are given before an attempt begins: they say nothing of an earlier copy of it.
_BEFORE = (Outcome.BUSY, Outcome.EXPIRED)

logger = logging.getLogger("async_hooks")


class Settler:
    """Records what becomes of the attempts that ``process`` has sent, or runs."""

    def __init__(self, app: Flask, config: Config, store: Store, process: Process) -> None:
        self.app = app
        self.config = config
        self.store = store
        self.process = process

    def settle(self, envelope: Envelope, result: Result) -> bool:
        """Record, and wait as long as the outbox can't be written; false if it never could."""
        process, pause = self.process, 0.1
        while True:
            try:
                self.record(envelope, result)
                return True
            except OutboxUnavailable as error:
                if process.ended.is_set():
                    what = "Delivery %s: outcome not recorded (outbox unavailable)."
                    logger.error(what, envelope.id, extra=ids(envelope))
                    return False
                process.own_problem = str(error)
                process.ended.wait(pause * uniform(0.5, 1.5))  # noqa: S311
                pause = min(2 * pause, 2.0)

    def record(self, envelope: Envelope, result: Result) -> None:
        """Record what became of an attempt.

        :raises OutboxUnavailable: if that can't be written now.
        """
        rule = rule_for(result)
        if isinstance(result, TransportError):
            self._record_unanswered(envelope, rule, result)
        elif result is None or rule.action is Action.WATCH:
            self._await(envelope)
        else:
            self._record_verdict(envelope, rule, result)

    def _record_verdict(self, envelope: Envelope, rule: Rule, verdict: Verdict) -> None:
        error = verdict.error or verdict.outcome
        self.process.breaker.reset()  # The way to the endpoint is open.
        if verdict.outcome is Outcome.INTERCEPTED:
            self._record_refusal(envelope, error)
            return
        if verdict.is_recorded or rule.action not in (Action.PARK, Action.WAIT):
            self.process.note_arrival(envelope)
        if verdict.is_recorded:
            return
        if rule.action is Action.COMPLETE:
            self.store.record(envelope, Ending(DeliveryState.COMPLETED))
        elif rule.action is Action.PARK:
            kind = (envelope.task, envelope.receiver or "")
            self.process.parked[kind] = self.process.monotonic() + _PARKED
            logger.warning("Delivery %s: parked: %s", envelope.id, error, extra=ids(envelope))
            self.store.record(envelope, Ending(DeliveryState.AVAILABLE, unused=True))
        elif rule.action is Action.WAIT:
            may_have_begun = verdict.outcome not in _BEFORE
            is_released = self._send_again(envelope, rule, error, may_have_begun=may_have_begun)
            if not (is_released or may_have_begun):  # Else the attempt is over, and was replaced.
                self._await(envelope)
        else:
            self.fail(envelope, rule, error, verdict.after)

    def _record_refusal(self, envelope: Envelope, error: str) -> None:
        """Record that the app answered in the place of a run: sent again, up to a number."""
        count = self.store.refusals(envelope)
        if count is None:
            return
        if count >= _MOST_REFUSALS:
            self.store.begin(envelope, self.process.id)  # If not even that was done.
            self.fail(envelope, RULES[Outcome.FAILED], error)
            return
        run_at = self.store.now() + pause_after(count)
        ending = Ending(DeliveryState.AVAILABLE, run_at=run_at, refusals=1, unused=True)
        if self.store.record(envelope, ending) and not count:
            what = "Delivery %s did not arrive, and waits: %s"
            logger.warning(what, envelope.id, error, extra=ids(envelope))

    def _record_unanswered(self, envelope: Envelope, rule: Rule, problem: TransportError) -> None:
        """Record an attempt of which its endpoint said nothing."""
        text = text_of(problem)
        if self._send_again(envelope, rule, text, may_have_begun=False):
            return  # It never began.
        if rule.action is Action.WATCH or self._may_still_run(envelope):
            self._await(envelope)
        else:
            self.fail(envelope, rule, text, failure=problem)

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

        ``failure`` is reported where no endpoint has reported it.
        """
        before = self.store.counters(envelope)
        if before is None:  # Cancelled, or another attempt has taken its place.
            return
        crashes = int(rule.action is Action.AT_ONCE)
        counters = (before[0] + 1 - crashes, before[1] + crashes)
        # Decided out of the transaction: it asks the task, and the fence keeps the answer true.
        run_at = self._again_at(envelope, rule, after, *counters)
        kept = state_of(self.app).redact(error)
        error = UNSHOWN if kept is None else text_of(kept)
        ending = Ending(
            DeliveryState.AVAILABLE if run_at is not None else DeliveryState.DISCARDED,
            run_at=run_at,
            error=error,
            failures=1 - crashes,
            crashes=crashes,
            additions=[] if run_at is not None else notices_of(self.app, envelope, error),
        )
        if not self.store.record(envelope, ending):
            return
        if failure is not None:
            send_in_context(task_failed, self.app, envelope=envelope, exception=failure)
        if run_at is None:
            send_in_context(task_discarded, self.app, envelope=envelope, error=error)
        else:
            again_at = datetime.fromtimestamp(run_at, UTC)
            send_in_context(task_retrying, self.app, envelope=envelope, run_at=again_at)

    def release(self, envelopes: Sequence[Envelope]) -> None:
        """Let others have what is claimed, and no sender has taken."""
        for envelope in envelopes:
            self.process.drop(envelope)
        try:
            if envelopes:
                self.store.release(envelopes)
        except OutboxUnavailable as error:
            logger.warning("Claimed deliveries are released later: %s", error)

    def each(self, envelopes: Iterable[Envelope], step: Callable[[Envelope], None]) -> None:
        """Take ``step`` with each of ``envelopes``; what fails concerns that one alone.

        :raises OutboxUnavailable: if nothing can be written now.
        """
        error = "Its outcome could not be recorded; the log says why."
        for envelope in envelopes:
            try:
                step(envelope)
            except OutboxUnavailable:
                raise
            except Exception:
                logger.exception("Delivery %s: set aside.", envelope.id, extra=ids(envelope))
                run_at = self.store.now() + _ASIDE
                self.store.record(envelope, Ending(DeliveryState.AVAILABLE, run_at, error))

    def record_crash(self, envelope: Envelope) -> None:
        """Count the death of the process that ran ``envelope``."""
        died = TransportError("The process that ran it died.")
        self.fail(envelope, CRASHED, str(died), failure=died)

    def _again_at(
        self, envelope: Envelope, rule: Rule, after: float | None, failures: int, crashes: int
    ) -> float | None:
        """Return when to try again after ``failures`` and ``crashes``; None to discard."""
        now = self.store.now()
        if envelope.receiver == DISCARDED or rule.action is Action.DISCARD:
            return None
        if rule.action is Action.AT_ONCE:
            return now if crashes < self.config.max_crashes else None
        options = options_of(state_of(self.app), envelope)
        if failures >= options.max_attempts:
            return None
        wait = options.backoff(failures) if after is None else after
        return now + min(max(0.0, wait), LONGEST)

    def _send_again(
        self, envelope: Envelope, rule: Rule, error: str, *, may_have_begun: bool
    ) -> bool:
        """Let it be sent again with no attempt used; false if it began, and only then counts."""
        process, store = self.process, self.store
        after = process.pause_of(envelope, rule.breaks) if rule.slows else None
        if may_have_begun:
            run_at = None if after is None else store.now() + after
            ending = Ending(DeliveryState.AVAILABLE, run_at=run_at, unused=True)
            is_released = store.record(envelope, ending)
        else:
            is_released = store.release([envelope], after=after) == 1
        if is_released and rule.slows:
            is_first = process.note_failure(envelope, rule.breaks)
            if process.breaker.trip(error, process.monotonic()) if rule.breaks else is_first:
                what = "Delivery %s did not arrive, and waits: %s"
                logger.warning(what, envelope.id, error, extra=ids(envelope))
        return is_released

    def _await(self, envelope: Envelope) -> None:
        """Leave the attempt to the process that runs it, and that settles it when it ends.

        Where nobody says that it began, it has as long as it may take.
        """
        process = self.process
        if envelope not in process.runs and self.store.holder(envelope) not in (None, process.id):
            return
        timeout = options_of(state_of(self.app), envelope).timeout
        process.leave(envelope, min(timeout, LONGEST_WAIT))

    def _may_still_run(self, envelope: Envelope) -> bool:
        """Tell whether the process that began with it is not known to be dead."""
        process, holder = self.process, self.store.holder(envelope)
        if holder is None or holder == process.id:
            return envelope in process.runs or process.runs.verdict_on(envelope) is not None
        return not process.liveness.has_ended(holder, process.liveness.host_id)
