from __future__ import annotations

import json
import re
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest

from async_hooks import DataError
from async_hooks.snapshot import snapshot


def carried(value: Any) -> Any:
    return json.loads(snapshot({"value": value}, max_bytes=2**20))["value"]


class Colour(StrEnum):
    RED = "red"


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
