"""The composition root: the only room that wires the others."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

import blinker
from flask import Flask, current_app, request_started

from . import config as configuration
from . import log
from .config import Config
from .context import Capture, Context, Restore
from .endpoint import executor
from .endpoint.attempt import ENDPOINT
from .endpoint.endpoint import Endpoint
from .errors import ConfigError, OutboxRequired
from .host.replay import ReplayGuard
from .jobs import METHODS, OPTIONS, Job, P, R
from .launch import after_response as handover
from .launch import launcher
from .launch.after_response import HandOver, is_served
from .launch.launcher import Launcher, Trigger
from .receivers import Receiver
from .recorder import Recorder, recording
from .registry import Registry
from .relay.relay import Immediate, Relay
from .signing import SKEW, Signing
from .state import KEY, State, Transport, current_state, state_of
from .task import AsyncTask, action_name, action_signal, async_signal, check, option_for_outbox
from .transports.address import Address
from .transports.eager import Eager
from .transports.in_process import InProcess
from .transports.loopback import Loopback
from .validation import checked, count, needs_outbox, optional, seconds

if TYPE_CHECKING:  # Comes with an optional extra.
    from .outbox.admin import Outbox
    from .outbox.ledger import Ledger

logger = logging.getLogger("async_hooks")

Task = TypeVar("Task", bound=type[AsyncTask])
Function = TypeVar("Function", bound=Callable[..., Any])


class AsyncHooks:
    """Defers what signals trigger to fresh requests of the same app.

    One object serves any number of apps: what it keeps for each lies in that app.
    """

    def __init__(self, app: Flask | None = None, *, db: Any = None, session: Any = None) -> None:
        """``db`` (Flask-SQLAlchemy) or ``session`` (a scoped_session) are for the outbox "app"."""
        self._tasks: Registry[type[AsyncTask]] = Registry("task")
        self._receivers: Registry[Receiver] = Registry("receiver")
        #: Counts the calls of init_app: what a factory defines again, it defines in another.
        self._period = 0
        #: What ends the connection of a task's trigger, or of a receiver.
        self._connections: dict[Any, Callable[[], object]] = {}
        self._context = Context()
        self._db = db
        self._session = session
        #: Why something that only an outbox can keep is refused: an app has none.
        self._lacks_outbox = False
        self._redact: Callable[[Any], Any] = lambda value: value
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up ``app``: read its configuration, mount the endpoint, watch its requests.

        :raises ConfigError: for a wrong configuration, or if ``app`` is set up already.
        :raises OutboxRequired: if a task declares what only an outbox can keep, and there is none.
        """
        if KEY in app.extensions:
            raise ConfigError(f"{app.name!r} has an AsyncHooks already. Call init_app once.")
        self._period += 1
        config = configuration.read(app.config)
        if config.outbox is None:
            self._refuse_options()
        address = Address(config.url)
        signing = Signing(app, config.audience)
        ledger = outbox = None
        if config.outbox is not None:
            ledger, outbox = self._open_outbox(app, config, signing.audience)
            if config.transport == "eager":
                ledger = None  # Nothing waits.
        relay = _relay(app, config, address, ledger)
        app.extensions[KEY] = State(
            app=app,
            config=config,
            tasks=self._tasks,
            context=self._context,
            signing=signing,
            replay_guard=ReplayGuard(signing.audience, config.max_age + SKEW),
            launcher=Launcher(app),
            relay=relay,
            ledger=ledger,
            redact=self._redacted,
            outbox=outbox,
            is_reachable=lambda: _is_reachable(config, address),
        )
        path = f"{config.url_prefix}/run"
        app.add_url_rule(path, endpoint=ENDPOINT, view_func=executor.execute, methods=["POST"])
        app.teardown_request(handover.at_teardown)
        app.teardown_request(executor.at_teardown)
        request_started.connect(_restore, app, weak=False)
        observe = address.observe
        if ledger is not None:
            app.after_request(handover.keep)
            app.teardown_appcontext(handover.at_context_end)

            def observe(environ: Mapping[str, object]) -> None:
                address.observe(environ)
                if config.relay and is_served(environ):
                    relay.start()

        app.wsgi_app = Endpoint(  # type: ignore[method-assign]
            app, HandOver(app, app.wsgi_app), config=config, observe=observe
        )
        log.subscribe()

    def register(self, task: Task) -> Task:
        """Make ``task`` launch when its action is sent; also a class decorator.

        Of a local class that an app factory defines at each of its calls, the newest counts, also
        in the apps that were made before.

        :raises ConfigError: if it is declared wrongly, or its name is taken.
        :raises OutboxRequired: if it declares what only an outbox can keep.
        """
        if self._add_task(task):
            self._connect(task, action_signal(task.action), Trigger(task, self._tasks))
        return task

    @overload
    def job(self, function: Callable[P, R], /, **options: Any) -> Job[P, R]: ...

    @overload
    def job(self, /, **options: Any) -> Callable[[Callable[P, R]], Job[P, R]]: ...

    def job(self, function: Any = None, /, **options: Any) -> Any:
        """Make the decorated function a task: ``function.enqueue(**data)`` runs it later.

        ``name``, ``aliases``, ``queue``, ``priority``, ``timeout``, ``delay``, ``max_attempts`` and
        ``auth_level`` are as for a task; ``backoff``, ``unique_key``, ``ref``, ``finish`` and
        ``discarded`` are functions without ``self``.

        :raises ConfigError: for another option, or a wrong one.
        """
        for key in options:
            if key not in (*OPTIONS, *METHODS):
                raise ConfigError(f"{key!r} is no option of a job. There are: {', '.join(OPTIONS)}")
        if function is None:
            return lambda function: self.job(function, **options)
        job = Job(function, options)
        self._add_task(job.task)
        return job

    def redact(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Let ``function`` see each result, and each error's text, before the outbox keeps it.

        What it returns is kept. Also a decorator.
        """
        self._redact = function
        return function

    def _add_task(self, task: type[AsyncTask]) -> bool:
        """Know ``task`` by its name; return whether it is new."""
        check(task)
        if self._lacks_outbox:
            _refuse("task", task.name, option_for_outbox(task))
        if self._tasks.find(task.name) is task:
            return False
        self._add(self._tasks, task, task)
        return True

    def _add(self, registry: Registry[Any], entry: Any, definition: Any) -> None:
        """Add ``entry``, and end the connection of what it replaces."""
        is_local = "<locals>" in getattr(definition, "__qualname__", "")
        replaced = registry.add(entry, period=self._period if is_local else None)
        if replaced in self._connections:
            self._connections.pop(replaced)()

    def _redacted(self, value: Any) -> Any:
        try:
            return self._redact(value)
        except Exception:
            logger.exception("What redacts results and errors failed: nothing is kept.")
            return None

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

        ``name`` is what travels (default ``module.QualName``), ``aliases`` are former names,
        ``timeout`` is seconds for one attempt; ``max_attempts`` and ``backoff(attempt)``, which
        returns seconds, need an outbox. Each overrides what the task says.
        """
        where = f"receiver of {action_name(action)}"
        timeout = checked(optional(seconds), timeout, "timeout", where=where)
        checked(optional(count), max_attempts, "max_attempts", where=where)

        def connect(function: Function) -> Function:
            receiver = Receiver(
                function,
                self._tasks,
                name=name,
                aliases=aliases,
                timeout=timeout,
                max_attempts=max_attempts,
                backoff=backoff,
            )
            if self._lacks_outbox:
                _refuse("receiver", receiver.name, receiver.option_for_outbox())
            self._add(self._receivers, receiver, function)
            self._connect(receiver, async_signal(action), receiver)
            return function

        return connect

    def identity(self, capture: Capture, restore: Restore) -> None:
        """Tell who visits, where Flask-Login does not.

        ``capture()`` returns the visitor's id (what JSON can carry), None if anonymous, in the
        triggering request. ``restore(id)`` makes the fresh request that visitor's, before any
        before_request; if ``capture()`` then returns None, the visitor is gone.
        """
        self._context.set_identity(capture, restore)

    def carry(self, name: str, capture: Capture, restore: Restore) -> None:
        """Let more context travel, e.g. locale or tenant.

        ``restore`` is called in the fresh request, before any before_request, with what
        ``capture()`` returned where the task was launched.
        """
        self._context.add(name, capture, restore)

    def testing(self, app: Flask) -> AbstractContextManager[Recorder]:
        """Hold back what ``app`` launches, for a test to look at and to run.

        The context manager's value has ``envelopes``, a list, and ``run_all()``, which runs them
        and what they launch in turn, and raises what a receiver raises.
        """
        return recording(state_of(app))

    @property
    def outbox(self) -> Outbox:
        """The outbox of the current app, to look after what waits in it.

        :raises OutboxRequired: if it has none.
        """
        outbox: Outbox | None = current_state().outbox
        if outbox is None:
            raise OutboxRequired(needs_outbox("hooks.outbox", repr(current_app.name)))
        return outbox

    def _open_outbox(self, app: Flask, config: Config, name: str) -> tuple[Ledger, Outbox]:
        try:
            from .outbox.open import open_outbox
        except ImportError as error:
            raise ConfigError(
                f"'ASYNC_HOOKS_OUTBOX' needs SQLAlchemy ({error}). Install async-hooks[outbox]."
            ) from None
        return open_outbox(
            app,
            config,
            name,
            db=self._db,
            session=self._session,
            keep=lambda additions: launcher.keep(state_of(app), additions),
            sent=lambda: handover.wake(app),
        )

    def _refuse_options(self) -> None:
        """Refuse what is declared, or will be, and needs an outbox: an app has none."""
        self._lacks_outbox = True
        for task in self._tasks.all().values():
            _refuse("task", task.name, option_for_outbox(task))
        for receiver in self._receivers.all().values():
            _refuse("receiver", receiver.name, receiver.option_for_outbox())

    def _connect(self, entry: Any, signal: blinker.Signal, bound: Callable[..., Any]) -> None:
        # Signals outlive apps: the connection ends with the tasks of the apps that it is for.
        signal.connect(bound, weak=False)
        end = weakref.finalize(self._tasks, signal.disconnect, bound)
        end.atexit = False  # What the relay runs when the process ends needs its receivers.
        self._connections[entry] = end


def _refuse(kind: str, name: str, option: str | None) -> None:
    if option is not None:
        raise OutboxRequired(needs_outbox(option, f"{kind} {name!r}"))


def _relay(
    app: Flask, config: Config, address: Address, ledger: Ledger | None
) -> Relay | Immediate:
    in_process = InProcess(app)
    if config.transport == "eager":
        return Immediate(app, Eager(app))
    loopback = Loopback(app, config, address)
    transports: Mapping[str, Transport] = {"loopback": loopback, "in_process": in_process}
    transport = config.transport
    if isinstance(transport, str):
        transport = transports[transport]
    fallback = in_process if config.fallback is not None else None
    claims = None
    if ledger is not None:
        from .relay.claims import Claims  # Who has no outbox need not load it.

        claims = Claims(app, config, ledger, take=lambda envelope: relay.take(envelope))
    relay = Relay(
        app,
        config,
        transport,
        fallback=fallback,
        in_process=in_process,
        cancel_unstarted=loopback.cancel_unstarted,
        claims=claims,
    )
    return relay


def _is_reachable(config: Config, address: Address) -> bool:
    has_other_way = config.transport != "loopback" or config.fallback is not None
    return has_other_way or address.may_be_known


def _restore(app: Flask, /, **kwargs: Any) -> None:
    executor.restore(app)
