"""The extension: what an app calls, and how it is set up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import blinker
from flask import Flask, current_app, request_started

from . import config as configuration
from . import log
from .alembic import join_flask_migrate
from .connected import end_period
from .context import Capture, Context, Restore
from .endpoint import executor
from .endpoint.attempt import ENDPOINT
from .endpoint.endpoint import Endpoint
from .errors import ConfigError, OutboxRequired
from .jobs import Job, LaunchOf, P, R
from .launch.after_response import AfterResponse, at_teardown
from .preparation import prepare_to_serve
from .receivers import Receiver
from .recorder import Recorder, recording
from .registration import Registration
from .state import KEY, current_state
from .task import AsyncTask
from .transports.address import Address
from .validation import did_you_mean, needs_outbox
from .wiring import keep_at_ends, wire

if TYPE_CHECKING:  # Comes with an optional extra.
    from .outbox.admin import Outbox

Task = TypeVar("Task", bound=type[AsyncTask])
Function = TypeVar("Function", bound=Callable[..., Any])


class AsyncHooks:
    """Defers what signals trigger to fresh requests of the same app.

    One object serves any number of apps: it keeps each app's state in that app.
    """

    def __init__(self, app: Flask | None = None, *, db: Any = None, session: Any = None) -> None:
        """``db`` (Flask-SQLAlchemy) or ``session`` (a scoped_session) are for the outbox "app"."""
        self._registration = Registration()
        self._context = Context()
        self._db = db
        self._session = session
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up ``app``: read its configuration, mount the endpoint, watch its requests.

        :raises ConfigError: for a wrong configuration, or if ``app`` is set up already.
        :raises OutboxRequired: if a task declares options that need an outbox, and there is none.
        """
        if KEY in app.extensions:
            raise ConfigError(f"{app.name!r} has an AsyncHooks already. Call init_app once.")
        self._registration.period += 1
        try:
            self._set_up(app)
        finally:  # What a factory has connected that fails is not for the next app either.
            end_period()

    def _set_up(self, app: Flask) -> None:
        config = configuration.read(app.config)
        tasks, receivers = self._registration.tasks, self._registration.receivers
        if config.outbox is None:
            tasks.refuse_options()
            receivers.refuse_options()
        address = Address(config.url)
        state = app.extensions[KEY] = wire(
            app, config, address, tasks, self._context, db=self._db, session=self._session
        )
        path = f"{config.url_prefix}/run"
        app.add_url_rule(path, endpoint=ENDPOINT, view_func=executor.run_view, methods=["POST"])
        request_started.connect(executor.restore, app, weak=False)
        # Flask calls these from the last to the first.
        app.teardown_request(at_teardown)
        if state.session is not None:
            keep_at_ends(app, state.session)
        app.teardown_request(executor.at_teardown)
        app.wsgi_app = Endpoint(  # type: ignore[method-assign]
            app,
            AfterResponse(app.wsgi_app),
            config=config,
            prepare=partial(prepare_to_serve, state),
            observe=address.observe,
            start=state.relay.start if state.relay is not None and config.relay else None,
        )
        if config.outbox is not None:
            join_flask_migrate(app)
        log.subscribe()
        tasks.has_app = True
        if config.outbox is None:
            tasks.keep_refusing()
            receivers.keep_refusing()

    def register(self, task: Task) -> Task:
        """Make ``task`` launch when its action is sent; also a class decorator.

        If an app factory defines a local class at each call, the newest definition counts, also
        in the apps that were made before.

        :raises ConfigError: if it is declared wrongly, or its name is taken.
        :raises OutboxRequired: if it declares options that need an outbox, and there is none.
        """
        self._registration.add_task(task)
        return task

    @overload
    def job(self, function: Callable[P, R], /, **options: Any) -> Job[P, R]: ...

    @overload
    def job(self, /, **options: Any) -> Callable[[Callable[P, R]], Job[P, R]]: ...

    def job(self, function: Any = None, /, **options: Any) -> Any:
        """Make the decorated function a task: ``function.enqueue(…)`` calls it later.

        ``name``, ``aliases``, ``queue``, ``priority``, ``timeout``, ``delay``, ``max_attempts``,
        ``auth_level``, ``expires``, ``slice_seconds``, ``limit``, ``rate``, ``burst``,
        ``debounce``, ``debounce_max``, ``unique_until`` and ``unique_for`` are as for a task;
        ``backoff``, ``unique_key``, ``ref``, ``finish``, ``discarded``, ``limit_key``, ``rate_key``
        and ``merge`` are functions without ``self``.

        :raises ConfigError: for another option, or a wrong one.
        """
        if function is None:
            return partial(self.job, **options)
        job = Job(function, options)
        self._registration.add_job(job.task)
        return job

    def dispatch(self, name: str, data: Mapping[str, Any], **options: Unpack[LaunchOf]) -> str:
        """Launch the task of this ``name``, or alias, with ``data``; return the id.

        The options and errors are those of :meth:`.AsyncTask.dispatch`.

        :raises ConfigError: also if no task has the name.
        """
        tasks = self._registration.tasks
        task = tasks.find(name)
        if task is None:
            hint = did_you_mean(name, tasks.all()) or "Is its module imported by your app factory?"
            raise ConfigError(f"No task is called {name!r}. {hint}")
        return task.dispatch(data, **options)

    def redact(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Pass each result and each error text to ``function`` before the outbox stores it.

        What it returns is kept. Also a decorator.
        """
        self._context.redaction = function
        return function

    def receiver(
        self,
        action: str | blinker.Signal,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        timeout: float | timedelta | None = None,
        max_attempts: int | None = None,
        backoff: Callable[[int], float | timedelta] | None = None,
    ) -> Callable[[Function], Function]:
        """Connect the decorated function to ``wp_async_<action>``, in this object's apps only.

        As long as no task of these hooks has the action, it launches a default one when it is sent,
        called ``default:<action>``. Its data are the signal's keywords, which have to be what JSON
        can carry.

        ``name`` is what travels (default ``module.QualName``), ``aliases`` are former names,
        ``timeout`` is seconds for one attempt; ``max_attempts`` and ``backoff(attempt)``, which
        returns seconds, need an outbox. Each overrides what the task says.
        """

        def connect(function: Function) -> Function:
            receiver = Receiver(
                function,
                self._registration.tasks,
                name=name,
                aliases=aliases,
                timeout=timeout,
                max_attempts=max_attempts,
                backoff=backoff,
            )
            self._registration.add_receiver(action, receiver, function)
            return function

        return connect

    def identity(self, capture: Capture, restore: Restore) -> None:
        """Identify the visitor without Flask-Login.

        ``capture()`` returns the visitor's id (what JSON can carry), None if anonymous, in the
        triggering request. ``restore(id)`` makes the fresh request that visitor's, before any
        before_request; if ``capture()`` then returns None, the visitor is gone.
        """
        self._context.identity = (capture, restore)

    def carry(self, name: str, capture: Capture, restore: Restore) -> None:
        """Let more context travel, e.g. a tenant; the locale of Flask-Babel travels by itself.

        ``restore`` is called in the fresh request, before any before_request, with what
        ``capture()`` returned where the task was launched. If ``capture`` raises, that is warned
        of, and nothing is carried under this name.
        """
        self._context.add(name, capture, restore)

    def testing(self, app: Flask) -> AbstractContextManager[Recorder]:
        """Hold back what ``app`` launches, for a test to look at and to run.

        The context manager's value has ``envelopes``, a list, and ``run_all()``, which runs them
        and what they launch in turn, and raises what a receiver raises.
        """
        return recording(app)

    @property
    def outbox(self) -> Outbox:
        """The outbox of the current app, to look after what waits in it.

        :raises OutboxRequired: if it has none.
        """
        outbox: Outbox | None = current_state().outbox
        if outbox is None:
            raise OutboxRequired(needs_outbox("hooks.outbox", repr(current_app.name)))
        return outbox
