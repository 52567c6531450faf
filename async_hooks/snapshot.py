"""The JSON snapshot of a task's data, taken in the triggering request."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from math import nan
from typing import Any
from uuid import UUID

from .errors import DataError
from .texts import repr_of, text_of

#: What JSON can carry as it is. In the request, this is quicker to see than its path is to write.
_ATOMS = frozenset({str, int, bool, type(None)})
_NAMES = frozenset({str})

# What is encoded is plain already, so it contains nothing twice.
_encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")).encode

# Many at once take half the time. NaN, which no data has, stands between them; in JSON's strings
# there are no line breaks.
_encode_many = json.JSONEncoder(check_circular=False, separators=(",\n", ":")).encode
_BETWEEN = ",\nNaN,\n"


def snapshot(data: Mapping[str, Any], *, max_bytes: int) -> str:
    """Return ``data`` as JSON text.

    Datetimes become ISO 8601 strings with microseconds and offset (a naive one is taken as UTC,
    as Flask takes it), dates ISO 8601, Decimals and UUIDs strings, tuples lists. Everything else
    that JSON has no word for is refused with its path, e.g. ``data['lead']['id']``; so is what
    would arrive in part, such as a MultiDict.

    :raises DataError: if the data is not a mapping, can't be written as JSON, or is longer than
        ``max_bytes`` bytes.
    """
    text = _encoded(lambda: _plain_mapping(data), "data")
    if len(text) > max_bytes:
        raise DataError(
            f"'data' is {len(text)} bytes of JSON; 'ASYNC_HOOKS_MAX_BYTES' allows {max_bytes}, "
            "less what is carried beside it. "
            "Store it and pass its id instead."
        )
    return text


def snapshots(items: Sequence[Mapping[str, Any]], *, max_bytes: int) -> list[str]:
    """Return the :func:`snapshot` of each of ``items``.

    :raises DataError: as there, naming the index of the item.
    """
    with suppress(DataError, RecursionError, ValueError):
        parts = [part for data in items for part in (_plain_mapping(data), nan)]
        texts = _encode_many(parts[:-1])[1:-1].split(_BETWEEN)
        if max(map(len, texts)) <= max_bytes:
            return [text.replace(",\n", ",") for text in texts]
    # One can't travel, and says so itself.
    return [_snapshot_of(index, data, max_bytes) for index, data in enumerate(items)]


def _snapshot_of(index: int, data: Mapping[str, Any], max_bytes: int) -> str:
    try:
        return snapshot(data, max_bytes=max_bytes)
    except DataError as error:
        raise DataError(f"Item {index}: {error}") from error


def _plain_mapping(data: Mapping[str, Any]) -> Any:
    if not isinstance(data, (dict, Mapping)):
        raise DataError(
            f"expected a task's data to be a dict, got: {type(data).__name__}. "
            "To launch nothing, raise SkipTask in prepare_data."
        )
    is_plain = _ATOMS.issuperset(map(type, data.values())) and _NAMES.issuperset(map(type, data))
    return data if is_plain and type(data) is dict else plain(data, "data")


def json_of(value: Any, path: str) -> str:
    """Return ``value`` as JSON text; ``path`` is what an error calls it.

    :raises DataError: if it can't be written so.
    """
    return _encoded(lambda: plain(value, path), path)


def _encoded(make: Callable[[], Any], path: str) -> str:
    try:
        return _encode(make())
    except RecursionError:
        raise DataError(f"'{path}' is nested too deeply, or contains itself. Flatten it.") from None
    except ValueError as error:
        raise DataError(f"'{path}' can't be written as JSON: {text_of(error)}") from None


def plain(value: Any, path: str) -> Any:
    """Return ``value`` in the words of JSON; ``path`` says in an error where it lies.

    :raises DataError: if there are none for it.
    """
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, (dict, Mapping)):  # A dict, which is usual, is told faster.
        if type(value) is not dict:
            _refuse_several_values(value, path)
        found = {
            (name := key if type(key) is str else _key(key, path)): (
                item if type(item) in _ATOMS else plain(item, f"{path}[{name!r}]")
            )
            for key, item in value.items()
        }
        if len(found) != len(value):
            raise DataError(f"{path} has keys that are one and the same in JSON. Rename one.")
        return found
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, datetime):
        aware = value if value.utcoffset() is not None else value.replace(tzinfo=UTC)
        return aware.isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    _refuse_several_values(value, path)
    raise DataError(
        f"{path} is {_described(value)}, which JSON can't carry. "
        "Pass an id, a string or a number, and load the object in run_action."
    )


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return str.__str__(key)  # Of a subclass, such as StrEnum, what JSON writes.
    shown = repr_of(key)
    raise DataError(f"{path} has the key {shown}; JSON keys are strings. Use str({shown}).")


def _refuse_several_values(value: Any, path: str) -> None:
    """Refuse what has several values of one key, of which its ``items`` may show the first.

    Those of Werkzeug and Django have ``getlist``, others have it under another name.
    """
    kind = type(value)
    get = next((name for name in ("getlist", "getall", "get_list") if hasattr(kind, name)), None)
    if get is None:
        return
    remedy = "Pass its .to_dict(flat=False)."
    if not hasattr(kind, "to_dict"):
        remedy = (
            f"Pass {{key: it.{get}(key) for key in it.keys()}}, which is what "
            ".to_dict(flat=False) of a MultiDict returns."
        )
    raise DataError(
        f"{path}: a key of {kind.__name__} may have several values, one of JSON can't. {remedy}"
    )


def _described(value: Any) -> str:
    return repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
