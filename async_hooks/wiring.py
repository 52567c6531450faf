"""Makes what one app needs, and puts it together; :class:`.AsyncHooks` decides where it goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request

from .config import Config
from .context import Context
from .endpoint.attempt import ATTEMPT
from .errors import ConfigError
from .host.per_process import PerProcess
from .host.replay import ReplayGuard
from .launch import launcher
from .launch.after_response import close_open
from .preparation import Preparation
from .recorder import under_test
from .registry import Registry
from .relay.memory import Immediate, Memory, MemoryRelay
from .relay.process import Process
from .relay.relay import report_overdue
from .signing import SKEW, Signing
from .state import Relays, State, Submits, state_of
from .transports.address import Address
from .transports.in_process import Eager, InProcess
from .transports.loopback import Loopback

if TYPE_CHECKING:  # Comes with an optional extra.
    from .outbox.open import Opened
    from .outbox.session import SessionOutbox


def wire(
    app: Flask,
    config: Config,
    address: Address,
    tasks: Registry[Any],
    context: Context,
    *,
    db: Any,
    session: Any,
) -> State:
    """Return the record of ``app``.

    :raises ConfigError: if its outbox can't be opened, or its key signs nothing.
    """
    audiences = config.audience or (app.name,)
    opened = None
    if config.outbox is not None:
        opened = _open_outbox(app, config, audiences, db, session)
    process = PerProcess(
        lambda: Process(
            audiences[0] if opened is None else opened.identity(),
            report=partial(report_overdue, app),
        ),
        Process.close,
    )
    memory, relay = _relays(app, config, address, process, opened)
    # With the eager transport nothing waits.
    used = opened if relay is not None else None
    has_other_way = config.transport != "loopback" or config.fallback is not None
    state = State(
        app=app,
        config=config,
        tasks=tasks,
        context=context,
        signing=Signing(app, audiences),
        replay_guard=ReplayGuard(audiences[0], config.max_age + SKEW),
        launcher=launcher,
        memory=memory,
        relay=relay,
        store=used.store if used is not None else None,
        session=used.session if used is not None else None,
        process=process,
        redact=context.redact,
        outbox=opened.outbox if opened is not None else None,
        prepare=Preparation(app, config),
        is_reachable=lambda: has_other_way or address.may_be_known,
    )
    return replace(state, under_test=under_test(state))


def _open_outbox(
    app: Flask, config: Config, audiences: Sequence[str], db: Any, session: Any
) -> Opened:
    try:
        from .outbox.open import open_outbox
    except ImportError as error:
        raise ConfigError(
            f"'ASYNC_HOOKS_OUTBOX' needs SQLAlchemy ({error}). Install async-hooks[outbox]."
        ) from None
    return open_outbox(
        app,
        config,
        audiences,
        db=db,
        session=session,
        keep=lambda envelopes: launcher.add(state_of(app), envelopes),
        sent=lambda envelopes: launcher.wake(state_of(app), envelopes),
    )


def _relays(
    app: Flask,
    config: Config,
    address: Address,
    process: PerProcess[Process],
    opened: Opened | None,
) -> tuple[Submits, Relays | None]:
    """Return what carries the envelopes in memory, and what carries the outbox, if there is one."""
    if config.transport == "eager":
        return Immediate(app, Eager(app)), None
    loopback, in_process = Loopback(app, config, address), InProcess(app)
    transport = config.transport
    if isinstance(transport, str):
        transport = loopback if transport == "loopback" else in_process
    ways: dict[str, Any] = {
        "transport": transport,
        "fallback": in_process if config.fallback is not None else None,
        "in_process": in_process,
        "cancel_unstarted": loopback.cancel_unstarted,
    }
    memory = MemoryRelay(
        app,
        config,
        lambda: Memory(app, config.queue_size, config.max_age),
        close_open=partial(close_open, app),
        **ways,
    )
    if opened is None:
        return memory, None
    from .relay.claims import Claims  # Who has no outbox need not load it.
    from .relay.outbox_relay import OutboxRelay

    return memory, OutboxRelay(
        app, config, lambda: Claims(app, config, opened, process[os.getpid()]), **ways
    )


def keep_at_ends(app: Flask, session: SessionOutbox) -> None:
    """Keep, at each end of a request or context, what was launched and no commit will keep."""

    @app.after_request
    def keep(response: Response) -> Response:
        # Here, so that the visitor learns of an outbox that is down.
        if ATTEMPT not in request.environ:  # A run's go with its completion.
            session.flush()
        return response

    app.teardown_request(lambda error: session.flush())
    app.teardown_appcontext(lambda error: session.flush(is_last=True))
