"""What travels beside the data: the visitor, where the request came in, what else to carry."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flask import Flask, Request, has_request_context
from flask.ctx import RequestContext
from flask.globals import request_ctx

from .envelope import Origin
from .errors import ConfigError
from .language import LANGUAGE, captured_language, restore_language
from .snapshot import snapshot
from .texts import log_exception

logger = logging.getLogger("async_hooks")

Capture = Callable[[], Any]
Restore = Callable[[Any], Any]


class Context:
    """What one AsyncHooks captures in the triggering request and restores in the fresh one."""

    def __init__(self) -> None:
        self.identity: tuple[Capture, Restore] | None = None
        #: What :meth:`redact` calls.
        self.redaction: Callable[[Any], Any] = lambda value: value
        self._carried: dict[str, tuple[Capture, Restore]] = {}
        #: What was warned of.
        self._reported: set[str] = set()

    def add(self, name: str, capture: Capture, restore: Restore) -> None:
        if name in self._carried:
            raise ConfigError(f"{name!r} is already carried. Carry it once.")
        self._carried[name] = (capture, restore)

    def redact(self, value: Any) -> Any:
        """Return what is kept of a result or an error: nothing, where that can't be told."""
        try:
            return self.redaction(value)
        except Exception as error:
            log_exception(logger, error, "The redact function failed; the value is not kept.")
            return None

    def knows_visitors(self, app: Flask) -> bool:
        return self.identity is not None or hasattr(app, "login_manager")

    def visitor(self, app: Flask) -> Any:
        """Return who is visiting, as JSON can carry it; None if anonymous or not in a request."""
        if not self.knows_visitors(app) or request_of(app) is None:
            return None
        return self.identity[0]() if self.identity is not None else _flask_login_visitor(app)

    def captured_visitor(self, app: Flask, level: int) -> Any:
        """Return who launches a task of this ``auth_level``; None if that can't be told.

        That is warned of. For a task that is not for anonymous visitors, it is an error.
        """
        try:
            return self.visitor(app)
        except ConfigError:
            raise
        except Exception:
            if not admits(level, anonymous=True):
                raise
            self._report("The visitor can't be told; what is launched runs as anonymous.")
            return None

    def restore_visitor(self, app: Flask, user: Any) -> None:
        """Make this request ``user``'s. Who it is then, :meth:`visitor` tells."""
        if self.identity is not None:
            if user is not None:
                self.identity[1](user)
        elif hasattr(app, "login_manager"):
            _flask_login_restore(app, user)

    def capture(self, app: Flask, max_bytes: int) -> str:
        """Return the rest of what is carried, as JSON text.

        A capture that fails carries nothing, with a warning: no launch is lost for it.
        """
        captures = {name: capture for name, (capture, _) in self._carried.items()}
        if "babel" in app.extensions:
            is_in_request = request_of(app) is not None
            captures[LANGUAGE] = partial(captured_language, app, is_in_request=is_in_request)
        values: dict[str, Any] = {}
        for name, capture in captures.items():
            try:
                values[name] = capture()
            except Exception:
                self._report(f"The capture of {name!r} failed; it is not carried.")
        return snapshot(values, max_bytes=max_bytes) if values else "{}"

    def restore(self, app: Flask, carried: str) -> None:
        """Restore what :meth:`capture` took. What this code no longer carries is left out."""
        if carried == "{}":
            return
        values = json.loads(carried)
        # First, so that what the app itself carries has the last word.
        restore_language(app, values.pop(LANGUAGE, {}))
        for name, value in values.items():
            if name in self._carried:
                self._carried[name][1](value)

    def _report(self, what: str) -> None:
        """Log the exception under way as a warning; of equal ones, the first."""
        if what not in self._reported:
            self._reported.add(what)
            logger.warning("%s This is said once.", what, exc_info=True)


def admits(level: int, *, anonymous: bool) -> bool:
    """Tell whether a task of this ``auth_level`` is for such a visitor."""
    return bool(int(level) & (2 if anonymous else 1))  # In the request: Flag's & is slow.


def request_of(app: Flask) -> Request | None:
    """Return the current request if it is one of ``app``; another app's is none of its business."""
    if not has_request_context():
        return None
    context: RequestContext = request_ctx._get_current_object()  # type: ignore[attr-defined]
    return context.request if context.app is app else None


def origin(app: Flask) -> Origin:
    """Return this request's scheme, host and root as the app sees them, else the configured.

    Where Flask-Talisman forces https, https is configured.
    """
    request = request_of(app)
    if request is not None:
        return Origin(request.scheme, request.host, request.environ.get("SCRIPT_NAME", ""))
    config = app.config
    scheme = "https" if _forces_https(app) else config["PREFERRED_URL_SCHEME"]
    trusted = [host.lstrip(".") for host in config.get("TRUSTED_HOSTS") or ()]
    host = config.get("SERVER_NAME") or (trusted[0] if trusted else "localhost")
    root = config["APPLICATION_ROOT"]
    return Origin(scheme, host, root.rstrip("/"))


def _forces_https(app: Flask) -> bool:
    """Tell whether Flask-Talisman lets no plain HTTP in; in debug mode it does."""
    owners = owners_of_hooks(app)
    return not app.debug and any(getattr(owner, "force_https", False) for owner in owners)


def owners_of_hooks(app: Flask) -> Iterator[Any]:
    """Yield the objects whose methods are asked before each request: extensions, as a rule."""
    for function in app.before_request_funcs.get(None, ()):
        if (owner := getattr(function, "__self__", None)) is not None:
            yield owner


def _flask_login_visitor(app: Flask) -> Any:
    from flask_login import current_user

    if vars(app)["login_manager"]._user_callback is None:
        raise ConfigError(
            "Flask-Login has no user_loader, so no user can be loaded by id. Give it one, or call "
            "hooks.identity(capture, restore)."
        )
    return current_user.get_id() if current_user.is_authenticated else None


def _flask_login_restore(app: Flask, user: Any) -> None:
    # Flask-Login's own way of telling a request whose it is, without a login: no session is
    # written and no user_logged_in is sent.
    manager: Any = vars(app)["login_manager"]
    loaded = manager._user_callback(user) if user is not None else None
    manager._update_request_context_with_user(loaded)
