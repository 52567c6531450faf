"""Whatever happens to deliveries, in any order, the table says what a simple model says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from async_hooks.delivery import DeliveryState
from async_hooks.envelope import Envelope, new_id
from tests.contracts.outboxes import NOW, Outbox, an_outbox, envelope

PROCESSES = st.integers(0, 2)
UNFINISHED = ("available", "executing", "waiting")


@dataclass
class Given:
    """What one process has claimed: it, and nobody else, may write of this attempt."""

    envelope: Envelope
    process: str
    has_begun: bool = False


@dataclass
class Model:
    """A delivery as its owner would tell of it."""

    first: Envelope
    run_at: float
    key: str | None = None
    parent: Model | None = None
    children: list[Model] = field(default_factory=list)
    state: str = "available"
    #: The attempts that began since it was new or retried and were not released, and whether
    #: each of them crashed; None while it runs, and if it succeeded.
    begun: list[bool | None] = field(default_factory=list)
    completions: int = 0
    finished_at: float | None = None
    claim: Given | None = None

    @property
    def order(self) -> tuple[float, str]:
        return self.run_at, self.first.id

    @property
    def is_unfinished(self) -> bool:
        return self.state in UNFINISHED


class Life(RuleBasedStateMachine):
    """Three processes, what they do to some deliveries, and how they die of it."""

    outbox: Outbox
    deliveries = Bundle("deliveries")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.outbox.clear()
        self.now = NOW
        self.numbers = count(1)
        self.models: dict[str, Model] = {}
        self.processes = [new_id() for _ in range(3)]

    # -- what happens

    @rule(
        target=deliveries,
        key=st.sampled_from([None, "key"]),
        delay=st.sampled_from([0, 0, 0, 10]),
    )
    def add(self, key: str | None, delay: int) -> Any:
        made, run_at = self.new(), self.now + delay
        winner = next((m.first.id for m in self.models.values() if key and m.key == key), None)
        lost = self.outbox.add(made, now=self.now, run_at=run_at, unique_key=key)
        assert lost == ({} if winner is None else {made.id: winner})
        if winner is not None:
            return multiple()
        self.models[made.id] = Model(made, run_at, key)
        return made.id

    @rule(targets=(deliveries, claims), process=PROCESSES)
    def add_held(self, process: int) -> Any:
        """Add and claim at once; the id and the claim go to one bundle each."""
        made = self.new()
        given = self.add_claimed(made, process)
        self.models[made.id] = Model(made, self.now, state="executing", claim=given)
        return given

    def add_claimed(self, made: Envelope, process: int, **members: Any) -> Given:
        """Add ``made``, in a queue of its own, and claim it."""
        assert self.outbox.add(made, now=self.now, queue=made.id, **members) == {}
        name = self.processes[process]
        [claimed] = self.outbox.claim(1, process=name, queues=[made.id], now=self.now)
        return Given(claimed, name)

    @precondition(lambda self: all(model.key != "family" for model in self.models.values()))
    @rule(targets=(deliveries, claims), process=PROCESSES)
    def fan_out(self, process: int) -> Any:
        """A family whose parent has run, and whose first child is about to."""
        given = self.add_claimed(self.new(), process, unique_key="family")
        parent = given.envelope
        children = [parent.for_receiver(name) for name in ("one", "two")]
        assert self.outbox.begin(parent, now=self.now)
        assert self.outbox.complete(parent, additions=children, now=self.now)
        model = Model(parent, self.now, "family", state="waiting", begun=[None])
        model.children = [Model(child, self.now, parent=model) for child in children]
        self.models.update({each.first.id: each for each in (model, *model.children)})
        return given

    @precondition(lambda self: any(model.parent for model in self.models.values()))
    @rule(ends=st.lists(st.sampled_from(["completed", "discarded"]), min_size=1, max_size=3))
    def run_children(self, ends: list[str]) -> None:
        """Claim what is due, and end the children among it, as a relay without trouble does."""
        self.claim(0, 3)
        running = [model for model in self.models.values() if model.claim and model.parent]
        for model, end in zip(running, ends, strict=False):
            claim = model.claim
            assert claim is not None
            if not claim.has_begun:
                self.begin(claim, 0)
            if end == "completed":
                self.complete(claim, False)
            else:
                self.fail(claim, False, None)

    @rule(delivery=deliveries)
    def add_again(self, delivery: Any) -> None:
        model = self.model(delivery)
        if model is not None and (model.key is None or model.is_unfinished):
            assert self.outbox.add(model.first, now=self.now) == {}

    @rule(target=claims, process=PROCESSES, limit=st.integers(1, 3))
    def claim(self, process: int, limit: int) -> Any:
        due = [m for m in self.models.values() if m.state == "available" and m.run_at <= self.now]
        expected = sorted(due, key=lambda model: model.order)[:limit]
        name = self.processes[process]
        found = self.outbox.claim(limit, process=name, now=self.now)
        assert [each.id for each in found] == [model.first.id for model in expected]
        for model, each in zip(expected, found, strict=True):
            assert each.attempt == len(model.begun) + 1
            model.state, model.claim = "executing", Given(each, name)
        return multiple(*(model.claim for model in expected))

    @rule(claim=claims, executor=PROCESSES)
    def begin(self, claim: Given, executor: int) -> None:
        model = self.holder(claim)
        may = model is not None and not claim.has_begun
        assert (
            self.outbox.begin(claim.envelope, process=self.processes[executor], now=self.now) is may
        )
        if model is not None and may:
            claim.has_begun, claim.process = True, self.processes[executor]
            model.begun.append(None)

    @rule(target=deliveries, claim=claims, splits=st.booleans())
    def complete(self, claim: Given, splits: bool) -> Any:
        model = self.running(claim)
        splits = splits and claim.envelope.parent_id is None
        children = [claim.envelope.for_receiver(name) for name in ("one", "two") if splits]
        done = self.outbox.complete(claim.envelope, additions=children, now=self.now)
        assert done is (model is not None)
        if model is None:
            return multiple()
        if splits:
            model.state, model.claim = "waiting", None
        else:
            model.completions += 1
            self.finish(model, "completed")
        new = [child for child in children if child.id not in self.models]
        for child in new:
            made = Model(child, self.now, parent=model)
            self.models[child.id] = made
            model.children.append(made)
        return multiple(*(child.id for child in new))

    @rule(claim=claims, crashed=st.booleans(), delay=st.sampled_from([None, 0, 0, 10]))
    def fail(self, claim: Given, crashed: bool, delay: int | None) -> None:
        model = self.running(claim)
        run_at = None if delay is None else self.now + delay
        failed = self.outbox.fail(claim.envelope, run_at, crashed=crashed, now=self.now)
        if model is None:
            assert not failed
            return
        assert failed
        model.begun[-1] = crashed
        if delay is None:
            self.finish(model, "discarded")
        else:
            self.free(model, self.now + delay)

    @rule(claim=claims, may_have_begun=st.booleans())
    def release(self, claim: Given, may_have_begun: bool) -> None:
        model = self.holder(claim)
        may = model is not None and (may_have_begun or not claim.has_begun)
        let_go = self.outbox.undo if may_have_begun else self.outbox.release
        assert let_go(claim.envelope) is may
        if model is not None and may:
            if claim.has_begun:
                model.begun.pop()
            self.free(model, model.run_at)

    @rule(process=PROCESSES)
    def die(self, process: int) -> None:
        """A process is gone, and the others notice."""
        name, self.processes[process] = self.processes[process], new_id()
        self.outbox.rescue(name, now=self.now)
        for model in self.models.values():
            if model.claim is not None and model.claim.process == name:
                if model.claim.has_begun:
                    model.begun[-1] = True
                    self.free(model, self.now)
                else:
                    self.free(model, model.run_at)

    @rule(delivery=deliveries)
    def cancel(self, delivery: Any) -> None:
        name = self.id_of(delivery)  # It may be purged before its children are.
        family = [m for m in self.models.values() if name in (m.first.id, m.first.parent_id)]
        ended = [each for each in family if each.is_unfinished and each.state != "waiting"]
        assert self.outbox.cancel(name, now=self.now) is bool(ended)
        for each in ended:
            self.finish(each, "cancelled")

    @rule(delivery=deliveries)
    def retry(self, delivery: Any) -> None:
        model = self.model(delivery)
        is_at_rest = model is not None and model.state not in ("executing", "waiting")
        which = [model] if model is not None and is_at_rest else []
        children = [m for m in self.models.values() if m.first.parent_id == self.id_of(delivery)]
        if children:
            which = [m for m in children if m.state in ("available", "discarded", "cancelled")]
        assert self.outbox.retry(self.id_of(delivery), now=self.now) == len(which)
        for each in which:
            each.begun, each.completions, each.finished_at = [], 0, None
            self.free(each, self.now)
            if each.parent is not None:
                each.parent.state, each.parent.finished_at = "waiting", None
                each.parent.completions = 0

    @rule(age=st.sampled_from([0, 5, 20]))
    def purge(self, age: int) -> None:
        limit = self.now - age
        open_or_young = {  # A parent ends last.
            model.first.id
            for model in self.models.values()
            if model.finished_at is None or model.finished_at >= limit
        }
        old = [
            model
            for model in self.models.values()
            if model.finished_at is not None
            and model.finished_at < limit
            and model.key is None
            and model.first.parent_id not in open_or_young
        ]
        assert self.outbox.purge(self.now - age) == len(old)
        for model in old:
            del self.models[model.first.id]

    @rule(seconds=st.sampled_from([1, 10]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.models)
    @rule(claim=claims)
    def come_back(self, claim: Given) -> None:
        """Whoever lost a claim writes all that it can, and changes nothing."""
        if self.holder(claim) is not None:
            return
        before, stale = self.outbox.rows(), claim.envelope
        child = stale.for_receiver("late")
        assert not self.outbox.begin(stale, process=self.processes[0], now=self.now)
        assert not self.outbox.complete(stale, result="0", additions=[child], now=self.now)
        assert not self.outbox.fail(stale, crashed=True, now=self.now)
        assert not self.outbox.fail(stale, self.now, now=self.now)
        assert not self.outbox.undo(stale, run_at=self.now)
        assert self.outbox.rows() == before

    # -- what always holds

    @invariant()
    def the_table_says_what_the_model_says(self) -> None:
        rows = {row["id"]: row for row in self.outbox.rows()}
        assert rows.keys() == self.models.keys()  # Nothing is lost but by a purge.
        for model in self.models.values():
            row = rows[model.first.id]
            assert row["state"] in set(DeliveryState)
            assert (row["state"], row["run_at"]) == (model.state, model.run_at)
            assert row["attempts"] == len(model.begun)
            assert row["crashes"] == model.begun.count(True)
            assert row["failures"] == model.begun.count(False)
            assert row["finished_at"] == model.finished_at
            assert row["unique_key"] == model.key

    @invariant()
    def only_what_executes_has_a_holder(self) -> None:
        for row in self.outbox.rows():
            claim = self.models[row["id"]].claim
            holder = (claim.process, claim.envelope.lease) if claim is not None else (None, None)
            if row["state"] != "cancelled":  # Whose thread may go on.
                assert (row["process_id"], row["lease"]) == holder
            assert (row["state"] == "executing") is (claim is not None)

    @invariant()
    def what_a_process_holds_is_found_as_it_is(self) -> None:
        for process in self.processes:
            found = {each.envelope.id: each.has_begun for each in self.outbox.claimed_by(process)}
            held = [m for m in self.models.values() if m.claim and m.claim.process == process]
            assert found == {m.first.id: bool(m.claim and m.claim.has_begun) for m in held}

    @invariant()
    def each_try_is_completed_at_most_once(self) -> None:
        for model in self.models.values():
            assert model.completions == (1 if model.state == "completed" else 0)

    # -- the model

    def new(self) -> Envelope:
        """Return an envelope with the same id when the same story is told again."""
        return envelope(id=f"delivery-{next(self.numbers):03}")

    @staticmethod
    def id_of(delivery: Any) -> str:
        return delivery.envelope.id if isinstance(delivery, Given) else str(delivery)

    def model(self, delivery: Any) -> Model | None:
        return self.models.get(self.id_of(delivery))

    def holder(self, claim: Given) -> Model | None:
        """Return the delivery that ``claim`` still holds."""
        model = self.models.get(claim.envelope.id)
        return model if model is not None and model.claim is claim else None

    def running(self, claim: Given) -> Model | None:
        return self.holder(claim) if claim.has_begun else None

    def free(self, model: Model, run_at: float) -> None:
        model.state, model.run_at, model.claim = "available", run_at, None

    def finish(self, model: Model, state: str) -> None:
        model.state, model.finished_at, model.claim = state, self.now, None
        model.key = None
        parent = model.parent
        if (
            parent is not None
            and parent.state == "waiting"
            and not any(child.is_unfinished for child in parent.children)
        ):
            states = {child.state for child in parent.children}
            end = next(each for each in ("cancelled", "discarded", "completed") if each in states)
            parent.completions = int(end == "completed")
            self.finish(parent, end)


@pytest.fixture(scope="module")
def outbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outbox]:
    with an_outbox("sqlite", tmp_path_factory.mktemp("life")) as made:
        yield made


@pytest.mark.slow
def test_a_delivery_is_what_happened_to_it(outbox: Outbox) -> None:
    class Here(Life):
        pass

    Here.outbox = outbox
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            derandomize=os.environ.get("CI") is not None,
            suppress_health_check=[HealthCheck.too_slow],
            database=None,
        ),
    )
