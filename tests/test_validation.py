"""The checks of what a developer writes, and the one sentence that they end in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from async_hooks import ConfigError, validation
from async_hooks.validation import Wrong, checked, optional


@pytest.mark.parametrize("value", [2, 2.0, timedelta(seconds=2)])
def test_times_are_seconds_or_timedeltas(value: Any) -> None:
    for check in (validation.seconds, validation.seconds_or_zero):
        assert check(value) == 2


@pytest.mark.parametrize("value", [-1, timedelta(-1), True, "2", None, float("inf"), float("nan")])
def test_what_is_no_time_is_refused(value: Any) -> None:
    for check in (validation.seconds, validation.seconds_or_zero):
        with pytest.raises(Wrong, match="number of seconds"):
            check(value)


def test_some_times_may_be_none_at_all_and_a_delay_is_no_longer_than_ten_years() -> None:
    assert validation.seconds_or_zero(0) == validation.seconds_or_zero(timedelta(0)) == 0
    with pytest.raises(Wrong, match="a positive number of seconds"):
        validation.seconds(0)
    assert validation.seconds_or_zero(validation.LONGEST) == validation.LONGEST
    with pytest.raises(Wrong, match="at most ten years"):
        validation.seconds_or_zero(validation.LONGEST + 1)


@pytest.mark.parametrize(
    ("check", "right", "wrong", "expected"),
    [
        (validation.count, [1, 10**9], [0, -1, 1.0, True, "1"], "a positive whole number"),
        (validation.flag, [True, False], [1, 0, None, "yes"], "True or False"),
        (validation.priority_number, [0, -(10**6)], [10**6 + 1, True, 1.0], "up to a million"),
        (validation.one_of(None, "a"), [None, "a"], ["b", 1, []], "None or 'a'"),
        (validation.name, ["n"], ["", None, 1], "a name"),
        (validation.queue_name, ["q", "q" * 100], ["", "q" * 101, "\0", "\ud800"], "a name of up"),
        (validation.names, [("a", "b"), ()], ["ab", [1], None, 1], "a tuple of names"),
        (optional(validation.count), [None, 1], [0], "a positive whole number"),
    ],
)
def test_a_check_returns_what_is_right_and_says_what_it_expected(
    check: Any, right: list[Any], wrong: list[Any], expected: str
) -> None:
    assert [check(value) for value in right] == right
    for value in wrong:
        with pytest.raises(Wrong, match=expected):
            check(value)


class Nowhere(tzinfo):
    """A time zone that knows no offset: a datetime in it is naive, for all that it has one."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime.now(), r"with a time zone; give it this machine's with \.astimezone\(\)"),
        (datetime.max, r"\.astimezone\(\)"),
        (datetime.now().replace(tzinfo=Nowhere()), r"\.astimezone\(\)"),
        (datetime.max.replace(tzinfo=UTC), "at most ten years from now"),
        (datetime.max.replace(tzinfo=WEST), "at most ten years from now"),
        (datetime.min.replace(tzinfo=EAST), "at most ten years from now"),
        (datetime.now(UTC) + timedelta(days=3651), "at most ten years from now"),
        (datetime.now(UTC).date(), "a datetime"),
        (1e9, "a datetime"),
    ],
)
def test_a_point_in_time_is_one_for_all_and_not_too_far(value: Any, expected: str) -> None:
    with pytest.raises(Wrong, match=expected):
        validation.moment(value)


def test_a_point_in_time_has_any_time_zone() -> None:
    for zone in (UTC, EAST, WEST):
        value = datetime.now(zone) + timedelta(days=3640)
        assert validation.moment(value) is value


def test_the_sentence_names_where_what_was_expected_and_what_was_got() -> None:
    assert checked(validation.count, 3, "max_attempts", where="Task") == 3
    with pytest.raises(ConfigError) as error:
        checked(validation.count, 0, "max_attempts", where="Task")
    assert str(error.value) == (
        "'Task': expected 'max_attempts' to be a positive whole number, got: 0"
    )
    with pytest.raises(ConfigError, match=r"^expected 'KEY' to be a positive whole number, got: 0"):
        checked(validation.count, 0, "KEY")


def test_what_may_be_a_secret_is_not_repeated() -> None:
    def refuse(value: Any) -> None:
        raise Wrong("another one", secret=True)

    with pytest.raises(ConfigError, match=r"^expected 'KEY' to be another one$"):
        checked(refuse, "hunter2", "KEY")
