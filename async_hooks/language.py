"""The visitor's language: the locale and the time zone that Flask-Babel knows."""

from __future__ import annotations

import sys
from typing import Any

from flask import Flask

#: The name under which it travels.
LANGUAGE = "async_hooks.language"


def captured_language(app: Flask, *, is_in_request: bool) -> dict[str, str]:
    """Return the locale and the time zone of this context by name, what is known of them.

    Outside a request the app is not asked for them, which would look for a visitor: then only what
    is set already counts, e.g. by force_locale.
    """
    babel = _flask_babel(app)
    if babel is None:
        return {}
    known = vars(babel._get_current_context())
    if not is_in_request:
        locale, zone = known.get("babel_locale"), known.get("babel_tzinfo")
    else:
        locale, zone = _asked(babel, known)
    # A pytz zone has its name as 'zone', a zoneinfo one as 'key'; a mere offset has none.
    name = getattr(zone, "zone", None) or getattr(zone, "key", None)
    found = {"locale": None if locale is None else str(locale), "timezone": name}
    return {key: value for key, value in found.items() if value is not None}


def _asked(babel: Any, known: dict[str, Any]) -> tuple[Any, Any]:
    """Return what the app answers: once in a request, unless what is set changes.

    Flask-Babel remembers what it was told, and here it may be asked too early for the page.
    """
    is_set = known.get("babel_locale"), known.get("babel_tzinfo")
    asked_before, answer = known.get(LANGUAGE, (None, None))
    if asked_before == is_set and answer is not None:
        return answer  # type: ignore[no-any-return]
    before = dict(known)
    try:
        answer = babel.get_locale(), babel.get_timezone()
    finally:
        known.clear()
        known.update(before)
    known[LANGUAGE] = is_set, answer
    return answer


def restore_language(app: Flask, language: dict[str, str]) -> None:
    """Make what :func:`captured_language` returned this request's, as if the app had named it."""
    babel = _flask_babel(app)
    if babel is None:
        return
    context = babel._get_current_context()
    if "locale" in language:
        context.babel_locale = babel.Locale.parse(language["locale"])
    if "timezone" in language:
        context.babel_tzinfo = babel.timezone(language["timezone"])


def _flask_babel(app: Flask) -> Any:
    """Return the module if ``app`` was set up with it, at whatever time; else None."""
    return sys.modules.get("flask_babel") if "babel" in app.extensions else None
