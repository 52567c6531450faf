"""Checkpoints of runs whose effects are in the same database: a step and its cursor are one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from async_hooks import AsyncHooksError, Continue, Delivery, Interrupted, current_envelope
from async_hooks.errors import OutboxUnavailable
from async_hooks.state import state_of
from async_hooks.verdict import Outcome
from tests.contracts.joined import Runner
from tests.support.databases import fresh_database
from tests.support.joined_shop import READS, in_threads

Break = Callable[[Runner, int], object]


class Steps:
    """A run of four steps: each writes an order, launches one more delivery, and checkpoints.

    ``breaks`` is called in each step before its checkpoint, with its number.
    """

    def __init__(self, shop: Runner, breaks: Break = lambda shop, step: None) -> None:
        self.shop = shop
        self.breaks = breaks
        self.began: list[int] = []
        shop.receive(self)

    def __call__(self, sender: Any, *, n: int) -> None:
        if n > 1:
            return
        self.began.append((current_envelope.cursor or 0) + 1)
        for step in range(self.began[-1], 5):
            self.take(step)

    def take(self, step: int) -> None:
        self.shop.order(step)
        self.shop.task.dispatch({"n": 10 * step}, delay=60)
        self.breaks(self.shop, step)
        current_envelope.checkpoint(step, done=step, total=4)

    def assert_complete(self) -> None:
        assert self.shop.orders() == [1, 2, 3, 4]
        assert self.shop.sent() == [10, 20, 30, 40]


def first(shop: Runner) -> Delivery:
    [found] = [each for each in shop.deliveries() if each.data["n"] == 1]
    return found


def test_a_run_that_fails_goes_on_behind_its_last_checkpoint(shop: Runner) -> None:
    def fail_at_3(shop: Runner, step: int) -> None:
        if step == 3 and len(steps.began) == 1:
            shop.session.flush()
            raise LookupError("not today")

    steps = Steps(shop, fail_at_3)
    shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, shop.orders(), shop.sent()) == (Outcome.FAILED, [1, 2], [1, 10, 20])
    assert (first(shop).cursor, first(shop).progress) == (2, {"done": 2, "total": 4, "text": None})
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.COMPLETED
    assert steps.began == [1, 3]
    steps.assert_complete()
    assert first(shop).attempts == 2


def test_what_the_step_of_a_stale_attempt_did_and_launched_vanishes(shop: Runner) -> None:
    steps = Steps(shop, lambda shop, step: shop.steal() if step == 3 else None)
    shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, verdict.is_recorded) == (Outcome.INTERRUPTED, True)
    assert (shop.orders(), shop.sent(), steps.began) == ([1, 2], [10, 20], [1])
    assert (first(shop).state, first(shop).cursor) == ("executing", 2)


def test_a_stale_attempt_that_goes_on_whatever_it_is_told_changes_nothing(shop: Runner) -> None:
    told: list[type[BaseException]] = []

    def receiver(sender: Any, *, n: int) -> None:
        shop.steal()
        for step in (1, 2):
            try:
                steps.take(step)
            except BaseException as error:
                told.append(type(error))
        shop.order(3)

    steps = Steps(shop)
    shop.task.run_action = lambda self, data: receiver(None, **data)  # type: ignore[method-assign]
    shop.dispatch()
    [verdict] = shop.work()
    assert told == [Interrupted, Interrupted]
    assert (verdict.outcome, shop.orders(), shop.sent()) == (Outcome.REPLAYED, [], [])


def test_a_launch_is_committed_with_its_step_also_where_that_wrote_nothing(
    shop: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_action(self: Any, data: dict[str, Any]) -> None:
        READS["query"](shop)
        shop.task.dispatch({"n": 10}, delay=60)
        current_envelope.checkpoint(1)
        assert shop.sent() == [10]
        shop.task.dispatch({"n": 20}, delay=60)

    monkeypatch.setattr(shop.task, "run_action", run_action)
    shop.dispatch()
    with nothing_kept_elsewhere(shop, monkeypatch):
        [verdict] = shop.work()
    assert verdict.outcome is Outcome.COMPLETED
    assert shop.sent() == [10, 20]


@contextmanager
def nothing_kept_elsewhere(shop: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no launch be kept by a transaction of its own, as if the process died before."""

    def keep(*_: object) -> None:
        raise AssertionError("by itself")

    with monkeypatch.context() as patch:
        store = state_of(shop.app).store
        assert store is not None
        patch.setattr(store, "add", keep)
        yield


def begin_nested(shop: Runner) -> Any:
    return shop.session.begin_nested()


def begin(shop: Runner) -> Any:
    shop.session.rollback()
    return shop.session.begin()


@pytest.mark.parametrize("opened", [begin_nested, begin])
def test_inside_of_a_block_that_commits_by_itself_it_is_refused_before_it_writes(
    shop: Runner, opened: Callable[[Runner], Any]
) -> None:
    said: list[str] = []

    def run_action(self: Any, data: dict[str, Any]) -> None:
        current_envelope.checkpoint(1)
        with opened(shop):
            shop.order(1)
            with pytest.raises(AsyncHooksError, match=r"session\.commit\(\)") as refusal:
                current_envelope.checkpoint(2)
            said.append(str(refusal.value))
            assert current_envelope.cursor == 1
        shop.session.commit()
        current_envelope.checkpoint(3)

    shop.task.run_action = run_action  # type: ignore[method-assign]
    shop.dispatch()
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.COMPLETED, verdict.error
    assert (len(said), shop.orders(), first(shop).cursor) == (1, [1], 3)


def test_a_commit_of_the_apps_that_fails_is_told_to_the_run(shop: Runner) -> None:
    def refuse(session: Any) -> None:
        raise LookupError("not today")

    def refuse_at_2(shop: Runner, step: int) -> None:
        if step == 2 and len(steps.began) == 1:
            event.listen(shop.session(), "before_commit", refuse, once=True)

    steps = Steps(shop, refuse_at_2)
    shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, shop.orders(), shop.sent()) == (Outcome.FAILED, [1], [1, 10])
    assert "not today" in str(verdict.error)
    shop.work()
    steps.assert_complete()


@pytest.mark.parametrize("how", ["raised", "swallowed"])
def test_a_step_that_could_not_be_written_is_never_skipped(
    shop: Runner, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(step: int) -> None:
        try:
            original(step)
        except BaseException:
            if how == "raised" or len(steps.began) > 1:
                raise

    def lose_at_2(shop: Runner, step: int) -> None:
        store = state_of(shop.app).store
        if step == 2 and len(steps.began) == 1:
            monkeypatch.setattr(store, "checkpoint", unavailable)
        if step == 3:
            monkeypatch.undo()

    def unavailable(*_: object, **__: object) -> None:
        raise OutboxUnavailable("It is busy.")

    steps = Steps(shop, lose_at_2)
    original, steps.take = steps.take, take  # type: ignore[method-assign]
    shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, verdict.is_recorded) == (Outcome.UNWRITTEN, False)
    assert (shop.orders(), shop.sent()) == ([1], [1, 10])
    monkeypatch.undo()
    with shop.app.app_context():  # It would wait for half a second.
        assert shop.hooks.outbox.retry(first(shop).id)
    shop.work()
    assert steps.began == [1, 2]
    steps.assert_complete()
    assert first(shop).attempts == 1


def test_a_run_that_asks_to_go_on_commits_what_it_did_and_launched(shop: Runner) -> None:
    def run_action(self: Any, data: dict[str, Any]) -> None:
        shop.order(data["n"])
        shop.task.dispatch({"n": 10 * data["n"]}, delay=60)
        if data["n"] < 3:
            raise Continue({"n": data["n"] + 1})

    shop.task.run_action = run_action  # type: ignore[method-assign]
    launched = shop.dispatch()
    verdicts = [verdict for _ in range(3) for verdict in shop.work()]
    assert [verdict.outcome for verdict in verdicts] == ["continued", "continued", "completed"]
    assert (shop.orders(), shop.sent()) == ([1, 2, 3], [10, 20, 30])
    [delivery] = [each for each in shop.deliveries() if each.id == launched]
    assert (delivery.attempts, delivery.data, delivery.state) == (1, {"n": 3}, "completed")


def test_a_stale_run_that_asks_to_go_on_changes_nothing(shop: Runner) -> None:
    def run_action(self: Any, data: dict[str, Any]) -> None:
        shop.order(1)
        shop.task.dispatch({"n": 10}, delay=60)
        shop.steal()
        raise Continue({"n": 2})

    shop.task.run_action = run_action  # type: ignore[method-assign]
    shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, shop.orders(), shop.sent()) == (Outcome.REPLAYED, [], [])
    assert first(shop).data == {"n": 1}


def test_the_cursor_is_read_beside_the_session(shop: Runner) -> None:
    def run_action(self: Any, data: dict[str, Any]) -> None:
        assert (current_envelope.cursor, current_envelope.is_cancelled) == (None, False)
        assert not shop.session().in_transaction()
        shop.order(1)
        shop.session.flush()
        assert current_envelope.cursor is None

    shop.task.run_action = run_action  # type: ignore[method-assign]
    shop.dispatch()
    [verdict] = shop.work()
    assert (verdict.outcome, shop.orders()) == (Outcome.COMPLETED, [1])


def test_a_cancelled_run_is_interrupted_whatever_its_session_still_sees(
    tmp_path: Path, action: str
) -> None:
    with fresh_database("postgresql", tmp_path) as url:
        options = {"isolation_level": "REPEATABLE READ"}
        shop = Runner(url, action, SQLALCHEMY_ENGINE_OPTIONS=options)

        def cancel_at_2(shop: Runner, step: int) -> None:
            if step == 2:
                in_threads(lambda: cancel(shop))

        steps = Steps(shop, cancel_at_2)
        shop.dispatch()
        [verdict] = shop.work()
        assert verdict.outcome in (Outcome.INTERRUPTED, Outcome.UNWRITTEN)
        assert (shop.orders(), shop.sent(), steps.began) == ([1], [10], [1])
        assert first(shop).state == "cancelled"
        shop.engine.dispose()


def cancel(shop: Runner) -> None:
    with shop.app.app_context():
        assert shop.hooks.outbox.cancel(first(shop).id)


def test_a_database_that_goes_away_interrupts_and_no_step_is_skipped(
    tmp_path: Path, action: str
) -> None:
    with fresh_database("postgresql", tmp_path) as url:
        shop = Runner(url, action)

        def hang_up_at_2(shop: Runner, step: int) -> None:
            if step == 2 and len(steps.began) == 1:
                shop.session.flush()
                pid = shop.execute("SELECT pg_backend_pid()").scalar()
                in_threads(lambda: shop.write(f"SELECT pg_terminate_backend({pid}, 5000)"))

        steps = Steps(shop, hang_up_at_2)
        shop.dispatch()
        [verdict] = shop.work()
        assert verdict.outcome is Outcome.UNWRITTEN
        with shop.app.app_context():
            assert shop.hooks.outbox.retry(first(shop).id)
        shop.work()
        assert steps.began == [1, 2]
        steps.assert_complete()
        shop.engine.dispose()
