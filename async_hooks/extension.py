"""The composition root: the only room that wires the others."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import blinker
from flask import Flask, request_started

from . import config as configuration
from . import executor, handover, log
from .config import Config
from .consumed import Consumed
from .context import Capture, Context, Restore
from .endpoint import Endpoint
from .errors import ConfigError, OutboxRequired
from .executor import ENDPOINT
from .handover import HandOver
from .launcher import Launcher, Trigger
from .receivers import Receiver
from .recorder import Recorder, recording
from .registry import Owned, Registry
from .relay import Immediate, Relay
from .signing import SKEW, Signing
from .state import KEY, State, Transport, state_of
from .state import Relay as RelayProtocol
from .task import (
    AsyncTask,
    action_name,
    action_signal,
    async_signal,
    check,
    check_timeout,
    needs_outbox,
)
from .transports.address import Address
from .transports.eager import Eager
from .transports.in_process import InProcess
from .transports.loopback import Loopback

Task = TypeVar("Task", bound=type[AsyncTask])
Function = TypeVar("Function", bound=Callable[..., Any])


class AsyncHooks:
    """Defers what signals trigger to fresh requests of the same app.

    One object serves any number of apps: what it keeps for each lies in that app.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._registry = Registry()
        self._context = Context()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up ``app``: read its configuration, mount the endpoint, watch its requests.

        :raises ConfigError: for a wrong configuration, or if ``app`` is set up already.
        """
        if KEY in app.extensions:
            raise ConfigError(f"{app.name!r} has an AsyncHooks already. Call init_app once.")
        config = configuration.read(app.config)
        self._registry.generation += 1
        address = Address(config.url)
        signing = Signing(app, config.audience)
        app.extensions[KEY] = State(
            app=app,
            config=config,
            registry=self._registry,
            generation=self._registry.generation,
            context=self._context,
            signing=signing,
            consumed=Consumed(signing.audience, config.max_age + SKEW),
            launcher=Launcher(app),
            relay=_relay(app, config, address),
            is_reachable=lambda: _is_reachable(config, address),
        )
        path = f"{config.url_prefix}/run"
        app.add_url_rule(path, endpoint=ENDPOINT, view_func=executor.execute, methods=["POST"])
        app.teardown_request(handover.at_teardown)
        app.teardown_request(executor.at_teardown)
        request_started.connect(_restore, app, weak=False)
        handing_over = HandOver(app, app.wsgi_app)
        app.wsgi_app = Endpoint(app, handing_over, config=config, notice=address.notice)  # type: ignore[method-assign]
        log.subscribe()

    def register(self, task: Task) -> Task:
        """Make ``task`` launch when its action is sent; also a class decorator.

        :raises ConfigError: if it is declared wrongly, or its name is taken.
        :raises OutboxRequired: if it declares what only an outbox can keep.
        """
        check(task)
        local = "<locals>" in task.__qualname__
        if self._registry.tasks.add(task, generation=self._registry.generation, local=local):
            self._connect(action_signal(task.action), Trigger(task, self._registry))
        return task

    def receiver(
        self,
        action: str | blinker.Signal,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        timeout: float | timedelta | None = None,
        max_attempts: int | None = None,
        backoff: Callable[[int], float] | None = None,
    ) -> Callable[[Function], Function]:
        """Connect the decorated function to ``wp_async_<action>``, in this object's apps only.

        ``name`` is what travels (default ``module.QualName``), ``aliases`` are former names,
        ``timeout`` is seconds for one attempt; ``max_attempts`` and ``backoff`` need an outbox.
        """
        for key, wish in {"max_attempts": max_attempts, "backoff": backoff}.items():
            if wish is not None:
                raise OutboxRequired(needs_outbox(key, f"receiver {name!r}"))

        check_timeout(timeout, f"receiver of {action_name(action)}")

        def connect(function: Function) -> Function:
            receiver = Receiver(
                function, self._registry, name=name, aliases=aliases, timeout=timeout
            )
            local = "<locals>" in getattr(function, "__qualname__", "")
            self._registry.receivers.add(
                receiver, generation=self._registry.generation, local=local
            )
            self._connect(async_signal(action), receiver)
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

    def _connect(self, signal: blinker.Signal, owned: Owned) -> None:
        # Signals outlive apps: the connection ends with the registry that owns it.
        signal.connect(owned, weak=False)
        end = weakref.finalize(self._registry, signal.disconnect, owned)
        end.atexit = False  # What the relay runs when the process ends needs its receivers.


def _relay(app: Flask, config: Config, address: Address) -> RelayProtocol:
    in_process = InProcess(app)
    if config.transport == "eager":
        return Immediate(app, Eager(app))
    loopback = Loopback(app, config, address)
    transports: Mapping[str, Transport] = {"loopback": loopback, "in_process": in_process}
    transport = config.transport
    if isinstance(transport, str):
        transport = transports[transport]
    fallback = in_process if config.fallback is not None else None
    return Relay(
        app, config, transport, fallback=fallback, in_process=in_process, recall=loopback.recall
    )


def _is_reachable(config: Config, address: Address) -> bool:
    has_other_way = config.transport != "loopback" or config.fallback is not None
    return has_other_way or address.may_be_known


def _restore(app: Flask, /, **kwargs: Any) -> None:
    executor.restore(app)
