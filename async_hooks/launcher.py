"""The first end of the movement: a signal is sent, an envelope is made and handed over.

Launches of a request are collected and handed over after its response: when the server closes
the response's body. Where no server will close it (the test client), the request's teardown is
the last moment. Where there is no request, and after that moment, an envelope goes at once.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, has_request_context, request
from flask.globals import request_ctx

from .context import current_run, origin
from .envelope import Envelope, new_id
from .errors import AsyncHooksError, ConfigError, DepthExceeded
from .executor import RUN
from .registry import Registry
from .signals import emit, task_failed, task_launched
from .snapshot import snapshot
from .state import KEY, State, state_of
from .task import AsyncTask, Auth, SkipTask, admits
from .wsgi import close

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LAUNCHES = "async_hooks.launches"

logger = logging.getLogger("async_hooks")


class Trigger:
    """What is connected to a task's action: launches it, in an app that has the task."""

    def __init__(self, task: type[AsyncTask], registry: Registry) -> None:
        self.name = task.name
        self._task = task
        self._registry = weakref.ref(registry)
        self._reported = False

    def __call__(self, sender: Any, /, **kwargs: Any) -> str | None:
        """Launch, and return the envelope's id; None where there is nothing to launch."""
        if not current_app:
            self._report_no_context()
            return None
        state: State | None = current_app.extensions.get(KEY)
        if state is None or not self.belongs_to(state.registry, state.generation):
            return None
        run = current_run.get(None)
        if run is not None and not run.launching:
            return None
        return _trigger(state, self._task, sender, kwargs)

    def belongs_to(self, registry: Registry, generation: int) -> bool:
        ours = registry is self._registry()
        return ours and registry.tasks.find(self.name, generation) is self._task

    def _report_no_context(self) -> None:
        if not self._reported:
            self._reported = True
            logger.error(
                "The action of task %r was sent outside of an application context, so it was not "
                "launched. Send it inside 'with app.app_context():'.",
                self.name,
            )


def _trigger(
    state: State, task: type[AsyncTask], sender: Any, kwargs: Mapping[str, Any]
) -> str | None:
    envelope_id = new_id()
    try:
        user = _visitor(state, task)
        if not admits(task.auth_level, anonymous=user is None):
            return None
        data = task().prepare_data(sender, **kwargs)
        return _launch(state, task, data, user, task.priority, envelope_id)
    except SkipTask:
        return None
    except Exception as error:
        # Attempt 0: it never got as far as a first one.
        failed = Envelope(id=envelope_id, task=task.name, body="null", attempt=0)
        emit(task_failed, state.app, envelope=failed, exception=error)
        if _propagates(state.app):
            raise
        return None


class Launcher:
    """Launches for one app."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def dispatch(
        self, task: type[AsyncTask], data: Mapping[str, Any], *, priority: int | None, user: Any
    ) -> str:
        state = state_of(self._app)
        if state.registry.tasks.find(task.name, state.generation) is not task:
            raise ConfigError(
                f"Task {task.name!r} is not registered for {self._app.name!r}. "
                "Decorate it with @hooks.register."
            )
        if user is None:
            user = _visitor(state, task)
        if not admits(task.auth_level, anonymous=user is None):
            raise AsyncHooksError(
                f"Task {task.name!r} launches for {task.auth_level!r} visitors only. "
                "Name the visitor with dispatch(…, user=id), or widen its 'auth_level'."
            )
        priority = task.priority if priority is None else priority
        return _launch(state, task, data, user, priority, new_id())

    def hand_over(self, envelope: Envelope) -> None:
        """Hand ``envelope`` over after this request's response; at once if there is none."""
        if not has_request_context() or request_ctx.app is not self._app:
            state_of(self._app).relay.put(envelope)
            return
        launches: Launches | None = request.environ.get(LAUNCHES)
        if launches is None:
            launches = request.environ[LAUNCHES] = Launches(self._app, closes=False)
        launches.add(envelope)


def _launch(
    state: State,
    task: type[AsyncTask],
    data: Mapping[str, Any],
    user: Any,
    priority: int,
    envelope_id: str,
) -> str:
    config = state.config
    if not state.is_reachable():
        raise ConfigError(
            "'ASYNC_HOOKS_URL' is not set, no request has shown yet where this app listens, and "
            "'ASYNC_HOOKS_FALLBACK' is None. Set one of them."
        )
    run = current_run.get(None)
    depth = run.envelope.depth + 1 if run is not None else 0
    if depth > config.max_depth:
        raise DepthExceeded(
            f"Task {task.name!r} was launched {depth} runs deep; 'ASYNC_HOOKS_MAX_DEPTH' allows "
            f"{config.max_depth}. Does it launch itself?"
        )
    envelope = Envelope(
        id=envelope_id,
        task=task.name,
        body=snapshot(data, max_bytes=config.max_bytes),
        depth=depth,
        user=user,
        carried=state.context.capture(config.max_bytes),
        origin=origin(state.app),
        priority=priority,
    )
    state.launcher.hand_over(envelope)
    emit(task_launched, state.app, envelope=envelope)
    return envelope_id


def _visitor(state: State, task: type[AsyncTask]) -> Any:
    if task.auth_level == Auth.LOGGED_IN and not state.context.knows_visitors(state.app):
        raise ConfigError(
            f"Task {task.name!r} is for logged-in visitors, but nothing tells who is logged in. "
            "Set up Flask-Login, or call hooks.identity(capture, restore)."
        )
    return state.context.visitor(state.app)


def _propagates(app: Flask) -> bool:
    propagate = app.config["PROPAGATE_EXCEPTIONS"]
    return bool(app.testing or app.debug if propagate is None else propagate)


class Launches:
    """The launches of one request, handed over once, and singly thereafter.

    Any thread may add while another closes: each envelope is popped, and so put, once.
    ``closes`` says that a server will close the response.
    """

    __slots__ = ("_app", "_closed", "_waiting", "closes")

    def __init__(self, app: Flask, *, closes: bool) -> None:
        self.closes = closes
        self._app = app
        self._closed = False
        self._waiting: deque[Envelope] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, envelope: Envelope) -> None:
        self._waiting.append(envelope)
        if self._closed:
            self._put_all()

    def close(self) -> None:
        self._closed = True
        if self._waiting:
            self._put_all()

    def _put_all(self) -> None:
        envelopes = sorted(_popped(self._waiting), key=attrgetter("priority"))
        put = state_of(self._app).relay.put
        failed: list[BaseException] = []
        for envelope in envelopes:
            try:
                put(envelope)
            except Exception as error:  # An eager run's own: raised when the others had theirs.
                failed.append(error)
        if failed:
            raise failed[0]


def _popped(waiting: deque[Envelope]) -> Iterator[Envelope]:
    while True:
        try:
            yield waiting.popleft()
        except IndexError:
            return


class HandOver:
    """WSGI middleware: collects a request's launches, hands them over when its body is closed."""

    def __init__(self, app: Flask, wsgi_app: WSGIApplication) -> None:
        self._app = app
        self._wsgi_app = wsgi_app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        launches = environ[LAUNCHES] = Launches(self._app, closes=_closes(environ))
        try:
            body = self._wsgi_app(environ, start_response)
        except BaseException:
            launches.close()
            raise
        if launches:
            return _Closing(body, launches.close)
        launches.close()
        return body


def at_teardown(error: BaseException | None) -> None:
    """Hand over where no server will close the response; a teardown_request function."""
    launches: Launches | None = request.environ.get(LAUNCHES)
    if launches is not None and not launches.closes:
        launches.close()


def _closes(environ: Mapping[str, Any]) -> bool:
    # Servers name themselves, the test client does not. A server that does neither is only
    # handed over a little early.
    return "SERVER_SOFTWARE" in environ or "uwsgi.version" in environ or RUN in environ


class _Closing:
    """A response body that calls ``then`` after it was closed, whatever closing it does."""

    def __init__(self, body: Iterable[bytes], then: Callable[[], None]) -> None:
        self._body = body
        self._then = then

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close(self._body)
        finally:
            self._then()
