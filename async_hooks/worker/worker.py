"""The work of a worker's process: it relays in process, each delivery as a fresh request."""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask

from ..errors import ConfigError, OutboxRequired
from ..host.per_process import PerProcess
from ..relay.outbox_relay import OutboxRelay
from ..relay.process import POLL, Process
from ..relay.relay import report_overdue
from ..relay.share import Share
from ..signals import send_in_context, worker_error, worker_started, worker_stopped
from ..state import KEY, State, is_under_test, state_of
from ..transports.in_process import InProcess
from ..validation import needs_outbox

logger = logging.getLogger("async_hooks")


class Exit(IntEnum):
    """How a child says that it ended in order, and why. Without a word, a receiver ended it."""

    DONE = 80
    FAILED = 81
    MISCONFIGURED = 82
    RESTART = 83


class Options(NamedTuple):
    """``queues`` are worked in that order, None means all as one. ``quota`` deliveries end a child.

    So do more than ``max_rss`` MiB of memory. After ``max_time`` seconds, whatever children it had,
    the worker ends. ``once`` ends after one delivery, ``drain`` when
    nothing more is due. ``fresh`` says that a delivery is for a child that has not waited for it:
    the code may have changed meanwhile. A run that is overdue for more than ``kill_overdue``
    seconds ends its child, which counts as a crash.
    """

    name: str
    queues: Sequence[str] | None = None
    concurrency: int = 1
    quota: int | None = None
    max_rss: int | None = None
    max_time: float | None = None
    once: bool = False
    drain: bool = False
    fresh: bool = False
    kill_overdue: float | None = None

    @property
    def ends_by_itself(self) -> bool:
        return self.once or self.drain


class Work:
    """The child's part: relays until it is told to end, or has done what it was to do."""

    def __init__(self, app: Flask, options: Options) -> None:
        if is_under_test(app):
            raise ConfigError(
                f"{app.name!r} is TESTING, so nothing that waits in its outbox is run. "
                "Set 'ASYNC_HOOKS_TESTING' to 'live', or TESTING to False."
            )
        state = state_of(app)
        if not isinstance(state.relay, OutboxRelay) or state.store is None:
            raise OutboxRequired(needs_outbox("The worker", repr(app.name)))
        if options.max_rss is not None and (taken := resident()) > options.max_rss:
            raise ConfigError(
                f"'--max-rss {options.max_rss}': the app takes {taken:.0f} MiB before any delivery."
            )
        self._app = app
        self._options = options
        self._over = threading.Event()
        self._is_used_up = self._has_waited = False
        config = replace(state.config, concurrency=options.concurrency, relay=True)
        share = Share(
            options.name,
            options.queues,
            options.quota,
            strict=options.once,
            idle=self._is_idle,
            accepts=self._accepts,
        )
        web, in_process = state.relay.source, InProcess(app)
        process = PerProcess(
            lambda: Process(web.process.runtime_name, report=partial(report_overdue, app)),
            Process.close,
        )
        self._relay = OutboxRelay(
            app,
            config,
            lambda: web.of_worker(config, process[os.getpid()], share),
            in_process,
            fallback=in_process,
            in_process=in_process,
            cancel_unstarted=lambda: None,
        )
        self._state: State = replace(state, relay=self._relay, process=process)

    def run(self, died: int | None = None) -> Exit:
        """Work until the end, and say which it was.

        ``died`` is the exit code of the process before this one, if that died: negative if a signal
        ended it. With ``once``, this one only tells of it: that was the delivery.

        :raises OutboxUnavailable: if that can't be used at the start, and there is no waiting.
        """
        options, app = self._options, self._app
        app.extensions[KEY] = self._state
        if options.ends_by_itself:
            self._state.outbox.paused()  # Any look at the database.
        if died is not None:
            how = {"exit_code": died, "signal": None}
            if died < 0:
                how = {"exit_code": None, "signal": -died}
            send_in_context(worker_error, app, name=options.name, **how)
            if options.once:
                return Exit.FAILED
        facts: dict[str, Any] = {"name": options.name, "queues": options.queues}
        send_in_context(worker_started, app, **facts)
        self._relay.start()
        is_killed = False
        try:
            while not (self._over.wait(POLL) or is_killed):
                self._end_if_too_big()
                is_killed = self._must_be_killed()
        finally:
            self._relay.stop()  # What is in time may finish.
            send_in_context(worker_stopped, app, **facts)
        if is_killed:
            logger.error("Worker %s: a run is overdue for too long; restarting.", options.name)
        if options.once:
            return Exit.FAILED if is_killed or self._relay.source.has_failed else Exit.DONE
        return Exit.RESTART if is_killed or self._is_used_up else Exit.DONE

    def end(self) -> None:
        """Finish what runs, give back the rest."""
        self._is_used_up = True  # Unless the parent ends as well, there is more to do.
        self._over.set()

    @property
    def is_overdue(self) -> bool:
        """Whether something still runs, that a stop did not wait for."""
        return bool(self._state.process[os.getpid()].runs)

    def _accepts(self) -> bool:
        """Tell whether this process may run what was claimed: with ``fresh``, not after a wait."""
        if not (self._options.fresh and self._has_waited):
            return True
        self._is_used_up = True
        self._over.set()
        return False

    def _is_idle(self, is_used_up: bool) -> None:
        self._is_used_up = is_used_up
        self._has_waited = True
        if is_used_up or self._options.ends_by_itself:
            self._over.set()

    def _end_if_too_big(self) -> None:
        if self._options.max_rss is not None and (taken := resident()) > self._options.max_rss:
            logger.info("Worker %s: %.0f MiB; restarting.", self._options.name, taken)
            self._is_used_up = True
            self._over.set()

    def _must_be_killed(self) -> bool:
        """Tell whether a run is overdue for so long that the options want it killed."""
        limit = self._options.kill_overdue
        return limit is not None and any(
            run.overdue_for() > limit for run in self._state.process[os.getpid()].runs.overdue()
        )


def resident() -> float:
    """Return the MiB of memory that this process takes; where that isn't told, ever has taken."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
