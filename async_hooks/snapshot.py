"""The JSON snapshot of a task's data, taken in the triggering request."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from .errors import DataError
from .texts import repr_of, text_of

#: What JSON can carry as it is. In the request, this is quicker to see than its path is to write.
_ATOMS = frozenset({str, int, bool, type(None)})

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def snapshot(data: Mapping[str, Any], *, max_bytes: int) -> str:
    """Return ``data`` as JSON text.

    Datetimes become ISO 8601 strings with microseconds and offset (a naive one is taken as UTC,
    as Flask takes it), dates ISO 8601, Decimals and UUIDs strings, tuples lists. Everything else
    that JSON has no word for is refused with its path, e.g. ``data['lead']['id']``.

    :raises DataError: if the data is not a mapping, can't be written as JSON, or is longer than
        ``max_bytes`` bytes.
    """
    if not isinstance(data, (dict, Mapping)):
        raise DataError(
            f"expected a task's data to be a dict, got: {type(data).__name__}. "
            "To launch nothing, raise SkipTask in prepare_data."
        )
    try:
        text = _encode(plain(data, "data"))
    except RecursionError:
        raise DataError("'data' is nested too deeply, or contains itself. Flatten it.") from None
    except ValueError as error:
        raise DataError(f"'data' can't be written as JSON: {text_of(error)}") from None
    if len(text) > max_bytes:
        raise DataError(
            f"'data' is {len(text)} bytes of JSON; 'ASYNC_HOOKS_MAX_BYTES' allows {max_bytes}, "
            "less what is carried beside it. "
            "Store it and pass its id instead."
        )
    return text


def plain(value: Any, path: str) -> Any:
    """Return ``value`` in the words of JSON; ``path`` says in an error where it lies.

    :raises DataError: if there are none for it.
    """
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, (dict, Mapping)):  # A dict, which is usual, is told faster.
        return {
            (key if type(key) is str else _key(key, path)): (
                item if type(item) in _ATOMS else plain(item, f"{path}[{key!r}]")
            )
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return aware.isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    raise DataError(
        f"{path} is {_described(value)}, which JSON can't carry. "
        "Pass an id, a string or a number, and load the object in run_action."
    )


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return key
    shown = repr_of(key)
    raise DataError(f"{path} has the key {shown}; JSON keys are strings. Use str({shown}).")


def _described(value: Any) -> str:
    return repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
