"""What stands in the way of a run: extensions that let it pass if asked to, and all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask

from ..context import owners_of_hooks
from ..verdict import Outcome, Verdict
from .fresh_request import Answered

#: Functions that an error names at most, so that it stays short.
_MOST_NAMES = 5

_LET_PASS = "Let it pass when async_hooks.current_envelope is true."  # noqa: S105 - no password


def exempt(app: Flask, view: Any) -> None:
    """Have the extensions of ``app`` let ``view`` pass: a token proves more than what they ask.

    They may be set up after us, so this is for each run to do.
    """
    found: Any = app.extensions
    limiters = found.get("limiter", ())
    for extension in (
        found.get("csrf"),
        *(limiters if isinstance(limiters, (set, frozenset, list, tuple)) else [limiters]),
        *(owner for owner in owners_of_hooks(app) if _package(type(owner)) == "flask_seasurf"),
    ):
        if callable(exempts := getattr(extension, "exempt", None)):
            exempts(view)
    if any(hasattr(owner, "force_https") for owner in owners_of_hooks(app)):
        # Flask-Talisman's. By a proxy's header it may have let the visitor pass; a run has none.
        view.talisman_view_options = {"force_https": False}


def intercepted(app: Flask, where: str, answered: Answered, error: BaseException | None) -> Verdict:
    """Return the verdict on a run that ``app`` answered before it reached its task."""
    what = f"raised {type(error).__name__}" if error else f"answered {answered.status}"
    text = f"The app {what} before {where} reached its task. {_remedy(answered)}"
    names = [_name(function) for function in app.before_request_funcs.get(None, ())]
    if names:
        more = ["…"] if len(names) > _MOST_NAMES else []
        text += f" It has these: {', '.join(names[:_MOST_NAMES] + more)}."
    return Verdict(Outcome.INTERCEPTED, text)


def not_restored(where: str, error: BaseException) -> Verdict:
    """Return the verdict on a run whose visitor or other context could not be restored."""
    return Verdict(
        Outcome.INTERCEPTED,
        f"{type(error).__name__} was raised when the visitor, or what hooks.carry carries, was "
        f"restored in {where}. The app's log has the traceback.",
    )


def _remedy(answered: Answered) -> str:
    if answered.status.startswith("3") and answered.location.startswith("https:"):
        return (
            "It redirects to https. Set 'PREFERRED_URL_SCHEME' to 'https' for what is launched "
            f"outside of a request, and set up ProxyFix behind a proxy. Or: {_LET_PASS}"
        )
    if answered.status.startswith("401"):
        return f"It asks for a login. Set 'ASYNC_HOOKS_AUTH' to (user, password). Or: {_LET_PASS}"
    return f"Does a before_request stand in the way? {_LET_PASS}"


def _name(function: Callable[..., Any]) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
