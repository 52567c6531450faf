from __future__ import annotations

import json
import re
from collections import ChainMap, Counter, OrderedDict, defaultdict
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from werkzeug.datastructures import (
    CombinedMultiDict,
    EnvironHeaders,
    Headers,
    ImmutableMultiDict,
    MultiDict,
)

from async_hooks import DataError
from async_hooks.snapshot import snapshot


def carried(value: Any) -> Any:
    return json.loads(snapshot({"value": value}, max_bytes=2**20))["value"]


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "arrives_as"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (1.5, 1.5),
        ("grüße 😀", "grüße 😀"),
        ([1, (2, [3])], [1, [2, [3]]]),
        (OrderedDict(a={"b": 1}), {"a": {"b": 1}}),
        (Colour.RED, "red"),
        ({Colour.RED: 1}, {"red": 1}),
        (Number.ONE, 1),
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (ChainMap({"a": 1}, {"a": 2, "b": 3}), {"a": 1, "b": 3}),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006+00:00"),
        (
            datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))),
            "2026-01-02T03:04:05.000000+02:00",
        ),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05.000000+00:00"),
    ],
)
def test_data_travels_in_the_words_of_json(value: Any, arrives_as: Any) -> None:
    assert carried(value) == arrives_as


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "data['value'] is a object"),
        (float("nan"), "data['value'] is nan"),
        ([1, float("inf")], "data['value'][1] is inf"),
        ({"a": {"b": b"x"}}, "data['value']['a']['b'] is a bytes"),
        ({"a": {1: 2}}, "data['value']['a'] has the key 1"),
        ({1, 2}, "data['value'] is a set"),
    ],
)
def test_what_json_has_no_word_for_is_refused_with_its_path(value: Any, path: str) -> None:
    with pytest.raises(DataError, match=re.escape(path)):
        carried(value)


FORM = [("size", "s"), ("size", "m"), ("colour", "red")]


class GetAll(dict[str, Any]):
    """Has several values of one key, as the multidicts of other packages do."""

    def getall(self, key: str) -> list[Any]:
        return [self[key]]


@pytest.mark.parametrize(
    "value",
    [
        MultiDict(FORM),
        ImmutableMultiDict(FORM),
        CombinedMultiDict([MultiDict(FORM)]),
        MultiDict(),
        Headers(FORM),
        EnvironHeaders({"HTTP_ACCEPT": "text/html"}),
        GetAll(size="s"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_several_values_of_a_key_is_refused_with_the_remedy(value: Any) -> None:
    what = f": a key of {type(value).__name__} may have several values"
    for data, path in (({"form": value}, "data['form']"), ({"a": [value]}, "data['a'][0]")):
        with pytest.raises(DataError, match=re.escape(path + what)) as raised:
            snapshot(data, max_bytes=1000)
        assert ".to_dict(flat=False)" in str(raised.value)


def test_data_may_not_be_a_multidict_itself_and_its_remedy_travels() -> None:
    form = ImmutableMultiDict(FORM)
    with pytest.raises(DataError, match=r"data: a key of .*\.to_dict\(flat=False\)"):
        snapshot(form, max_bytes=1000)
    assert carried(form.to_dict(flat=False)) == {"size": ["s", "m"], "colour": ["red"]}


def test_the_remedy_for_headers_keeps_every_value() -> None:
    it = Headers(FORM)
    assert carried({key: it.getlist(key) for key in it.keys()}) == {  # noqa: SIM118 - as advised
        "size": ["s", "m"],
        "colour": ["red"],
    }


class Loud(str):
    """A key that equals none but itself, whatever its text is."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def test_keys_that_would_be_one_are_refused() -> None:
    with pytest.raises(DataError, match=re.escape("data['value'] has keys that are one and the")):
        carried({Loud("a"): 1, Loud("a"): 2})
    assert carried({Loud("a"): 1, "b": 2}) == {"a": 1, "b": 2}


@pytest.mark.parametrize("key", [True, None, 1, 1.5, (1,), b"a", Number.ONE])
def test_keys_that_are_no_text_are_refused(key: Any) -> None:
    with pytest.raises(DataError, match=re.escape(f"has the key {key!r}; JSON keys are strings")):
        carried({key: 1})


def test_a_time_in_a_zone_without_an_offset_is_taken_as_utc_like_a_naive_one() -> None:
    class Nowhere(tzinfo):
        def utcoffset(self, _: datetime | None) -> None:
            return None

        dst = tzname = utcoffset

    assert carried(datetime(2026, 1, 2, tzinfo=Nowhere())) == "2026-01-02T00:00:00.000000+00:00"


def test_data_error_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        carried(object())


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_data_must_be_a_mapping(data: Any) -> None:
    with pytest.raises(DataError, match="expected a task's data to be a dict"):
        snapshot(data, max_bytes=100)


def test_data_that_contains_itself_is_refused() -> None:
    data: dict[str, Any] = {}
    data["self"] = data
    with pytest.raises(DataError, match="contains itself"):
        snapshot(data, max_bytes=100)


def test_data_that_is_too_large_is_refused() -> None:
    with pytest.raises(DataError, match="'ASYNC_HOOKS_MAX_BYTES' allows 100"):
        snapshot({"text": "x" * 100}, max_bytes=100)


def test_an_integer_too_long_to_write_is_refused() -> None:
    with pytest.raises(DataError, match="can't be written as JSON"):
        carried(10**5000)
