"""The texts of what the app's own code made: its exceptions and objects, whatever they do then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from .wsgi import is_from_keyboard

#: Stands where an object has no text.
UNSHOWN = "<cannot be shown>"

#: Characters that are kept of a text which the app's code made.
_LONGEST = 2000


def text_of(value: object) -> str:
    """Return ``str(value)``, or :data:`UNSHOWN` where that fails."""
    return _guarded(str, value)


def repr_of(value: object) -> str:
    """Return the beginning of ``repr(value)``, or :data:`UNSHOWN` where that fails."""
    return _bounded(_guarded(repr, value))


def error_text(error: BaseException) -> str:
    """Return ``TypeName: text`` of ``error``, of a long one the beginning."""
    return _bounded(f"{_guarded(_type_name, error)}: {text_of(error)}")


def log_exception(
    logger: logging.Logger,
    error: BaseException,
    message: str,
    *args: object,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Log ``message`` as an error with the traceback of ``error``; without, if it has none to show.

    Python asks an exception whether it is true before it prints the traceback.
    """
    try:
        exc_info = (type(error), error, error.__traceback__)
        logger.error(message, *args, exc_info=exc_info, extra=extra)
    except Exception:
        logger.error(f"{message} %s", *args, error_text(error), extra=extra)


def _type_name(value: object) -> str:
    return type(value).__name__


def _guarded(show: Callable[[Any], str], value: object) -> str:
    try:
        return str.__str__(show(value))  # Of a subclass of str, the text alone.
    except BaseException as raised:  # sys.exit in a __str__ is a failure like any other.
        if is_from_keyboard(raised):
            raise
        return UNSHOWN


def _bounded(text: str) -> str:
    """Return the beginning of ``text`` as every encoding takes it."""
    return text[:_LONGEST].encode("utf-8", "backslashreplace").decode()
