"""What endings mean, and how long a relay and a delivery wait after them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_hooks import errors
from async_hooks.delivery import Claim
from async_hooks.envelope import Envelope, Origin, new_id
from async_hooks.errors import TransportError
from async_hooks.outbox.sql.database import Database
from async_hooks.outbox.sql.engines import engine_for
from async_hooks.outbox.store import Store
from async_hooks.relay.outcomes import OTHERWISE, RULES, Action, Rule, rule_for
from async_hooks.relay.process import Breaker
from async_hooks.snapshot import snapshot
from async_hooks.task import exponential
from async_hooks.verdict import Outcome, Verdict
from tests.support.databases import fresh_database


def every_kind_of(kind: type[TransportError]) -> Iterator[type[TransportError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from every_kind_of(narrower)


#: Those of the library: other tests may have kinds of their own.
KINDS_OF_TROUBLE = [
    kind for kind in every_kind_of(TransportError) if kind.__module__ == errors.__name__
]


# -- rules


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_rule_of_its_own(outcome: Outcome) -> None:
    assert rule_for(Verdict(outcome)) is RULES[outcome]


@pytest.mark.parametrize("kind", KINDS_OF_TROUBLE)
def test_every_trouble_has_a_rule_or_else_one_for_all(kind: type[TransportError]) -> None:
    assert rule_for(kind("trouble")) is RULES.get(kind.cause, OTHERWISE)


def test_no_rule_is_for_nothing() -> None:
    causes = {kind.cause for kind in KINDS_OF_TROUBLE}
    assert set(RULES) <= {str(outcome) for outcome in Outcome} | causes


def test_no_cause_is_an_outcome_as_well() -> None:
    causes = {kind.cause for kind in KINDS_OF_TROUBLE}
    assert not causes & {str(outcome) for outcome in Outcome}


@given(st.text(max_size=20))
def test_a_trouble_nobody_has_heard_of_is_retried_at_the_breakers_pace(cause: str) -> None:
    rule = rule_for(TransportError("trouble", cause=cause))
    assert rule is RULES.get(cause, OTHERWISE)
    assert Rule(Action.RETRY, "an attempt", slows=True, breaks=True) == OTHERWISE


def test_a_transport_that_will_not_know_is_watched() -> None:
    assert rule_for(None).action is Action.WATCH


def test_what_did_not_fail_by_the_receiver_uses_no_attempt() -> None:
    free = {name for name, rule in RULES.items() if rule.counts == "nothing"}
    waits = (Action.WAIT, Action.PARK, Action.WATCH)
    assert free == {name for name, rule in RULES.items() if rule.action in waits}


def test_what_the_app_answers_to_one_says_nothing_of_the_others() -> None:
    breaks = {name for name, rule in RULES.items() if rule.breaks}
    assert not breaks & {str(outcome) for outcome in Outcome}


# -- the breaker


@given(st.lists(st.floats(0, 200), max_size=40))
def test_a_breaker_opens_for_no_more_than_its_longest_pause(waits: list[float]) -> None:
    breaker, now = Breaker(), 1000.0
    for wait in waits:
        breaker.trip("trouble", now)
        assert breaker.is_open(now)
        assert not breaker.is_open(now + Breaker.LONGEST * 1.2 + 0.001)
        now += wait


def test_a_breaker_doubles_its_pause_up_to_the_longest() -> None:
    breaker, now, expected = Breaker(), 1000.0, Breaker.FIRST
    for _ in range(12):
        breaker.trip("trouble", now)
        assert breaker.is_open(now + expected * 0.799)
        now += expected * 1.201
        assert not breaker.is_open(now)
        expected = min(2 * expected, Breaker.LONGEST)
    assert expected == Breaker.LONGEST


@given(st.integers(1, 50))
def test_of_many_that_fail_while_it_is_open_one_counts(number: int) -> None:
    breaker = Breaker()
    for _ in range(number):
        breaker.trip("trouble", 1000.0)
    assert not breaker.is_open(1000.0 + Breaker.FIRST * 1.201)


@given(st.integers(0, 20))
def test_a_breaker_that_is_reset_begins_anew(trips: int) -> None:
    breaker, now = Breaker(), 1000.0
    for _ in range(trips):
        breaker.trip("trouble", now)
        now += 100
    breaker.reset()
    assert breaker.problem is None
    assert not breaker.is_open(now)
    breaker.trip("trouble", now)
    assert not breaker.is_open(now + Breaker.FIRST * 1.201)


def test_only_a_new_trouble_is_news() -> None:
    breaker = Breaker()
    said = [breaker.trip(problem, 1000.0) for problem in ("a", "a", "b", "b", "a")]
    assert said == [True, False, True, False, True]
    breaker.reset()
    assert breaker.trip("a", 1000.0)


# -- the backoff


@given(st.integers())
def test_a_backoff_is_within_its_bounds_for_any_number(failures: int) -> None:
    assert 5 * 0.8 <= exponential(failures) <= 3600 * 1.2


@given(st.integers(1, 10**30))
def test_a_backoff_is_three_times_the_one_before_give_or_take(failures: int) -> None:
    middle = min(5.0 * 3.0 ** min(failures - 1, 100), 3600.0)
    assert middle * 0.8 <= exponential(failures) <= middle * 1.2


def test_the_backoff_never_shortens_but_for_its_jitter() -> None:
    for failures in range(1, 60):
        assert exponential(failures + 1) >= exponential(failures) * 0.8 / 1.2 - 1e-9


# -- an envelope in the outbox


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder = tmp_path_factory.mktemp("settlement")
    with fresh_database("sqlite", folder) as url:
        made = Database(lambda: engine_for(url, folder, synchronous="NORMAL"))
        yield made
        made.engine.dispose()


@settings(deadline=None, max_examples=30)
@given(
    data=st.dictionaries(st.text(st.characters()), JSON),
    user=JSON,
    carried=st.dictionaries(st.text(), JSON),
    numbers=st.tuples(st.integers(0, 9), st.integers(-(2**31), 2**31 - 1)),
    origin=st.builds(Origin, st.text(), st.text(), st.text()),
    family=st.sampled_from([None, ("parent", "receiver")]),
)
def test_an_envelope_comes_out_of_the_outbox_as_it_went_in(
    database: Database,
    data: dict[str, Any],
    user: Any,
    carried: dict[str, Any],
    numbers: tuple[int, int],
    origin: Origin,
    family: tuple[str, str] | None,
) -> None:
    depth, priority = numbers
    parent_id, receiver = family or (None, None)
    made = Envelope(
        id=new_id(),
        task="shop.Task",
        body=snapshot(data, max_bytes=2**20),
        depth=depth,
        user=user,
        carried=json.dumps(carried, separators=(",", ":")),
        origin=origin,
        parent_id=parent_id,
        receiver=receiver,
        priority=priority,
    )
    store = Store(database, ["shop"], now=lambda: 0.0)
    store.add([made])
    claim = Claim("process", new_id())
    [claimed], _ = store.claim(claim, [("shop.Task", receiver or "")], limit=5)
    assert claimed == made._replace(lease=claim.lease)
    assert claimed.data == data
    assert same_signs(claimed.data, data)


def same_signs(one: Any, other: Any) -> bool:
    """Tell whether even the zeros are alike, and a whole float is still a float."""
    if isinstance(one, dict):
        return all(same_signs(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return all(map(same_signs, one, other))
    if isinstance(one, float) or isinstance(other, float):
        alike = math.copysign(1, one) == math.copysign(1, other)
        return alike and type(one) is type(other)
    return type(one) is type(other)
