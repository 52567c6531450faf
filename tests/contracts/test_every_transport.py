"""With an outbox, the same is promised by whatever carries the envelopes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import blinker
import pytest
from flask import Flask

from async_hooks import (
    AsyncHooks,
    AsyncTask,
    Delivery,
    DeliveryState,
    Discard,
    Retry,
    signals,
)
from async_hooks.envelope import Envelope
from async_hooks.relay import claims
from async_hooks.state import Transport
from async_hooks.transports.in_process import InProcess
from async_hooks.verdict import Verdict
from tests.support.apps import make_task, plain_app
from tests.support.facts import Facts
from tests.support.waiting import wait_until


class Courier:
    """An object of the app's own that carries envelopes and brings back the verdict."""

    def __init__(self) -> None:
        self.app: Flask | None = None

    def send(self, envelope: Envelope) -> Verdict | None:
        assert self.app is not None
        return InProcess(self.app).send(envelope)


class Postbox(Courier):
    """One that hands envelopes to a thread, and will not know what becomes of them."""

    def send(self, envelope: Envelope) -> Verdict | None:
        threading.Thread(target=super().send, args=(envelope,)).start()
        return None


class Shop:
    """An app with an outbox in SQLite; its relay runs in the test's process."""

    def __init__(self, transport: str | Courier, action: str) -> None:
        self.app = plain_app(
            ASYNC_HOOKS_OUTBOX="sqlite:///outbox.db",
            ASYNC_HOOKS_TRANSPORT=transport,
            ASYNC_HOOKS_LEASE=1,
            ASYNC_HOOKS_TIMEOUT=10,
        )
        if isinstance(transport, Courier):
            transport.app = self.app
        self.hooks = AsyncHooks(self.app)
        self.action = action
        self.calls: list[tuple[str, Any]] = []

    def task(self, **members: Any) -> type[AsyncTask]:
        members = {"backoff": lambda self, attempt: 0, **members}
        return make_task(self.hooks, self.action, **members)

    def receiver(
        self, name: str, body: Callable[[int], object] = lambda call: None, **options: Any
    ) -> None:
        """Connect one that notes its calls; ``body`` is told how many there were before."""

        def receive(sender: Any, /, **kwargs: Any) -> object:
            before = sum(called == name for called, _ in self.calls)
            self.calls.append((name, kwargs))
            return body(before)

        self.hooks.receiver(self.action, name=name, **options)(receive)

    def send(self, **data: Any) -> str:
        """Send the action, and return the delivery's id."""
        with self.app.app_context():
            [(_, launched)] = blinker.signal(self.action).send(self.app, **data)
        return str(launched)

    def dispatch(self, task: type[AsyncTask], **wishes: Any) -> str:
        with self.app.app_context():
            return task.dispatch({"n": 1}, **wishes)

    def find(self, **asked: Any) -> list[Delivery]:
        with self.app.app_context():
            return self.hooks.outbox.find(**asked)

    def get(self, delivery_id: str) -> Delivery:
        with self.app.app_context():
            found = self.hooks.outbox.get(delivery_id)
        assert found is not None
        return found

    def ended(self, delivery_id: str) -> Delivery:
        """Return the delivery once it has ended."""
        final = (DeliveryState.COMPLETED, DeliveryState.DISCARDED, DeliveryState.CANCELLED)
        wait_until(lambda: self.get(delivery_id).state in final)
        return self.get(delivery_id)

    def children(self, parent_id: str) -> dict[str, Delivery]:
        """Return the children once all have ended, by receiver."""
        self.ended(parent_id)
        found = [each for each in self.find() if each.parent_id == parent_id]
        return {str(each.receiver): self.ended(each.id) for each in found}


@pytest.fixture(params=["in_process", Courier])
def shop(
    request: pytest.FixtureRequest, action: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    monkeypatch.setattr(claims, "POLL", 0.05)  # What is retried at once waits for a look.
    transport = request.param if isinstance(request.param, str) else request.param()
    made = Shop(transport, action)
    yield made
    state = made.app.extensions["async_hooks"]
    state.relay.stop()
    state.store.database.engine.dispose()


#: Also one that does not bring back what became of it: what succeeds, succeeds with it as well.
EACH = pytest.mark.parametrize("shop", ["in_process", Courier, Postbox], indirect=True)


def test_the_couriers_are_transports() -> None:
    couriers: list[Transport] = [Courier(), Postbox()]
    assert couriers


@EACH
def test_what_is_launched_is_delivered_and_completed(shop: Shop, facts: Facts) -> None:
    shop.task()
    shop.receiver("crm")
    delivery = shop.ended(shop.send(lead=7, note="ünï 🍕\x00"))
    assert (delivery.state, delivery.attempts) == (DeliveryState.COMPLETED, 1)
    assert shop.calls == [("crm", {"lead": 7, "note": "ünï 🍕\x00"})]
    assert [fact["envelope"].id for fact in facts.wait_for("succeeded")] == [delivery.id]


@EACH
def test_what_run_action_returns_is_kept(shop: Shop) -> None:
    task = shop.task(run_action=lambda self, data: {"sum": data["n"] + 1})
    assert shop.ended(shop.dispatch(task)).result == {"sum": 2}


@EACH
def test_many_launches_are_each_delivered_once(shop: Shop) -> None:
    shop.task()
    shop.receiver("crm")
    launched = [shop.send(n=n) for n in range(30)]
    assert {shop.ended(each).state for each in launched} == {DeliveryState.COMPLETED}
    assert sorted(kwargs["n"] for _, kwargs in shop.calls) == list(range(30))


def test_a_receiver_that_fails_is_retried_on_its_own(shop: Shop, facts: Facts) -> None:
    def fail_twice(before: int) -> None:
        if before < 2:
            raise ValueError(f"call {before}")

    shop.task()
    shop.receiver("crm", fail_twice)
    shop.receiver("newsletter")
    shop.receiver("log")
    children = shop.children(shop.send(lead=7))
    assert {each.state for each in children.values()} == {DeliveryState.COMPLETED}
    assert {name: each.attempts for name, each in children.items()} == {
        "crm": 3,
        "newsletter": 1,
        "log": 1,
    }
    names = [name for name, _ in shop.calls]
    assert {name: names.count(name) for name in children} == {"crm": 3, "newsletter": 1, "log": 1}
    assert len(facts.of("retrying")) == 2


def test_a_receiver_that_keeps_failing_is_discarded_after_its_attempts(
    shop: Shop, facts: Facts
) -> None:
    def fail(before: int) -> None:
        raise ValueError(f"call {before}")

    shop.task(max_attempts=3)
    shop.receiver("crm", fail)
    delivery = shop.ended(shop.send(lead=7))
    assert (delivery.state, delivery.attempts) == (DeliveryState.DISCARDED, 3)
    assert delivery.error == "ValueError: call 2"
    assert len(shop.calls) == 3
    assert facts.wait_for("discarded")[0]["error"] == "ValueError: call 2"


def test_each_receivers_own_attempts_and_backoff_count(shop: Shop) -> None:
    asked: list[int] = []

    def fail(before: int) -> None:
        raise ValueError(f"call {before}")

    def backoff(attempt: int) -> float:
        asked.append(attempt)
        return 0

    shop.task(max_attempts=2)
    shop.receiver("crm", fail, max_attempts=4, backoff=backoff)
    shop.receiver("newsletter", fail, max_attempts=1)
    shop.receiver("log", fail)
    children = shop.children(shop.send(lead=7))
    assert {each.state for each in children.values()} == {DeliveryState.DISCARDED}
    assert {name: each.attempts for name, each in children.items()} == {
        "crm": 4,
        "newsletter": 1,
        "log": 2,
    }
    assert asked == [1, 2, 3]


def test_a_retry_comes_when_it_asked_to(shop: Shop, facts: Facts) -> None:
    def later(before: int) -> None:
        raise Retry("not yet", after=3600)

    shop.task()
    shop.receiver("crm", later)
    launched = shop.send(lead=7)
    [fact] = facts.wait_for("retrying")
    delivery = shop.get(launched)
    assert (delivery.state, delivery.attempts) == (DeliveryState.AVAILABLE, 1)
    assert delivery.run_at == fact["run_at"]
    wait = delivery.run_at - delivery.created_at
    assert timedelta(seconds=3600) <= wait < timedelta(seconds=3660)


def test_a_retry_at_once_comes_at_once(shop: Shop) -> None:
    def once_more(before: int) -> None:
        if before == 0:
            raise Retry(after=0)

    shop.task(backoff=lambda self, attempt: 3600)
    shop.receiver("crm", once_more)
    delivery = shop.ended(shop.send(lead=7))
    assert (delivery.state, delivery.attempts) == (DeliveryState.COMPLETED, 2)


def test_what_says_never_again_is_discarded_at_once(shop: Shop) -> None:
    def never(before: int) -> None:
        raise Discard("the lead is gone")

    shop.task()
    shop.receiver("crm", never)
    delivery = shop.ended(shop.send(lead=7))
    assert (delivery.state, delivery.attempts) == (DeliveryState.DISCARDED, 1)
    assert delivery.error == "Discard: the lead is gone"
    assert len(shop.calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("shop", [Postbox], indirect=True)
def test_what_says_never_again_where_nobody_brings_it_back_is_discarded_too(shop: Shop) -> None:
    def never(before: int) -> None:
        raise Discard("the lead is gone")

    shop.task()
    shop.receiver("crm", never)
    launched = shop.send(lead=7)
    wait_until(lambda: shop.get(launched).state == "discarded" or len(shop.calls) > 1)
    assert shop.get(launched).error == "Discard: the lead is gone"
    assert len(shop.calls) == 1


@pytest.mark.parametrize("wish", ["delay", "run_at"])
@EACH
def test_what_is_for_later_waits_until_then(shop: Shop, wish: str) -> None:
    task = shop.task()
    shop.receiver("crm")
    moment = datetime.now(UTC) + timedelta(hours=1)
    later = shop.dispatch(task, **({"delay": 3600} if wish == "delay" else {"run_at": moment}))
    shop.ended(shop.dispatch(task))  # What came after it is through.
    waiting = shop.get(later)
    assert (waiting.state, waiting.attempts) == (DeliveryState.AVAILABLE, 0)
    assert abs(waiting.run_at - moment) < timedelta(seconds=30)
    assert len(shop.calls) == 1


def test_what_is_due_soon_is_delivered_then_and_not_before(shop: Shop) -> None:
    ran: list[datetime] = []
    task = shop.task()
    shop.receiver("crm", lambda before: ran.append(datetime.now(UTC)))
    delivery = shop.ended(shop.dispatch(task, delay=0.2))
    assert ran[0] >= delivery.run_at
    assert delivery.run_at - delivery.created_at >= timedelta(seconds=0.15)


@EACH
def test_the_loser_of_a_unique_key_gets_the_winners_id(shop: Shop) -> None:
    task = shop.task()
    shop.receiver("crm")
    winner = shop.dispatch(task, unique_key="lead-7", delay=3600)
    assert shop.dispatch(task, unique_key="lead-7") == winner
    other = shop.dispatch(task, unique_key="lead-8")
    assert other != winner
    shop.ended(other)
    again = shop.dispatch(task, unique_key="lead-8")
    assert again not in (other, winner)
    shop.ended(again)
    assert len(shop.calls) == 2


@EACH
def test_the_unique_key_of_a_fan_out_is_free_after_its_last_receiver(shop: Shop) -> None:
    go_on = threading.Event()

    def wait(before: int) -> None:
        assert go_on.wait(30)

    task = shop.task()
    shop.receiver("crm", wait)
    shop.receiver("newsletter")
    winner = shop.dispatch(task, unique_key="lead-7")
    wait_until(lambda: {name for name, _ in shop.calls} == {"crm", "newsletter"})
    assert shop.get(winner).state is DeliveryState.WAITING
    assert shop.dispatch(task, unique_key="lead-7") == winner
    go_on.set()
    shop.ended(winner)
    assert shop.dispatch(task, unique_key="lead-7") != winner


@EACH
def test_a_delivery_is_found_by_its_reference(shop: Shop) -> None:
    shop.task(ref=lambda self, data: f"lead-{data['lead']}")
    shop.receiver("crm")
    seven, eight = shop.send(lead=7), shop.send(lead=8)
    assert [each.id for each in shop.find(ref="lead-7")] == [seven]
    assert [each.ref for each in shop.find(ref="lead-8")] == ["lead-8"]
    assert shop.ended(eight).data == {"lead": 8}
    shop.ended(seven)
    assert len(shop.find(ref="lead-7", state="completed")) == 1


@EACH
def test_what_a_run_launches_is_delivered_too(shop: Shop, action: str) -> None:
    inner = make_task(shop.hooks, f"{action}_inner", name="inner", run_action=lambda s, d: d["n"])
    outer = shop.task(name="outer", run_action=lambda self, data: inner.dispatch({"n": 5}))
    launched = shop.ended(shop.dispatch(outer)).result
    assert shop.ended(launched).result == 5


def api_error(kind: type[Exception]) -> Exception:
    """Return an exception whose text is a number, as a careless ``return self.code`` makes it."""
    made: type[Exception] = type("ApiError", (kind,), {"__str__": lambda self: 503})
    return made()


@pytest.mark.parametrize(
    ("kind", "attempts"), [(Exception, 3), (KeyError, 3), (Discard, 1), (Retry, 3)]
)
def test_an_exception_without_a_text_counts_like_any_other(
    shop: Shop, kind: type[Exception], attempts: int, caplog: pytest.LogCaptureFixture, facts: Facts
) -> None:
    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise api_error(kind)

    shop.task(run_action=run_action, max_attempts=3)
    delivery = shop.ended(shop.send())
    assert (delivery.state, delivery.attempts) == (DeliveryState.DISCARDED, attempts)
    assert delivery.error == "ApiError: <cannot be shown>"
    assert len(facts.wait_for("failed", attempts)) == attempts
    lines = [record.getMessage() for record in caplog.records if record.name == "async_hooks"]
    assert sum("failed: ApiError: <cannot be shown>" in line for line in lines) == attempts
    assert not any("before_request" in line or "listener" in line for line in lines)


def test_odd_exceptions_hold_up_nobody_else(shop: Shop) -> None:
    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        if data["odd"]:
            raise api_error(Exception)

    shop.task(run_action=run_action, max_attempts=3)
    odd, sound = [shop.send(odd=True) for _ in range(5)], [shop.send(odd=False) for _ in range(20)]
    assert {shop.ended(each).state for each in sound} == {DeliveryState.COMPLETED}
    assert {shop.ended(each).attempts for each in odd} == {3}
    assert shop.app.extensions["async_hooks"].relay.source.process.breaker.problem is None


@pytest.mark.parametrize("after", ["soon", -1, float("nan"), 1e12, object()])
def test_a_retry_that_says_no_time_waits_for_its_backoff(
    shop: Shop, after: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        error = Retry("again")
        error.after = after
        raise error

    shop.task(run_action=run_action, max_attempts=2)
    delivery = shop.ended(shop.send())
    assert (delivery.attempts, delivery.error) == (2, "Retry: again")
    assert caplog.text.count("its backoff decides") == 2


def test_a_retry_that_was_never_made_properly_is_a_retry(shop: Shop) -> None:
    class Again(Retry):
        def __init__(self) -> None:
            Exception.__init__(self, "later")

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise Again

    shop.task(run_action=run_action, max_attempts=2)
    delivery = shop.ended(shop.send())
    assert (delivery.attempts, delivery.error) == (2, "Again: later")


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("not now")


class Elusive(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("not now")

    __repr__ = Unshown.__repr__


def nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize("make_result", [Unshown, nested, Elusive])
def test_a_result_that_cannot_be_shown_completes_its_delivery(
    shop: Shop, make_result: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    shop.task(run_action=lambda self, data: make_result())
    delivery = shop.ended(shop.send())
    assert (delivery.state, delivery.attempts) == (DeliveryState.COMPLETED, 1)
    assert delivery.result == "<cannot be shown>"
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "async_hooks"]
    said = f"Envelope {delivery.id}: its result cannot be shown, and is not kept."
    assert [line for line in lines if line[0] != "INFO"] == [("WARNING", said)]


@pytest.mark.parametrize("redacted", [Unshown(), {"card": "…"}, None])
def test_what_is_kept_of_an_error_is_text_whatever_redact_returns(
    shop: Shop, redacted: Any
) -> None:
    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        raise Discard("4111 1111 1111 1111")

    shop.hooks.redact(lambda value: redacted)
    shop.task(run_action=run_action)
    delivery = shop.ended(shop.send())
    shown = "{'card': '…'}" if isinstance(redacted, dict) else "<cannot be shown>"
    assert (delivery.state, delivery.error) == (DeliveryState.DISCARDED, shown)


@pytest.mark.parametrize("stop", [SystemExit(80), GeneratorExit()])
def test_a_listener_that_ends_the_run_is_the_failure_of_a_run_that_began(
    shop: Shop, stop: BaseException, facts: Facts
) -> None:
    def listen(sender: Any, /, **_: Any) -> None:
        raise stop

    shop.task(run_action=lambda self, data: None, max_attempts=2)
    with signals.task_started.connected_to(listen, shop.app):
        delivery = shop.ended(shop.send())
    assert (delivery.state, delivery.attempts) == (DeliveryState.DISCARDED, 2)
    assert str(delivery.error).startswith(type(stop).__name__)
