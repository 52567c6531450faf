"""Does the app reach itself, and if not, why? Asked over the real network."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flask import Flask

from .. import config as configuration
from ..errors import AddressUnknown, TransportError
from ..state import state_of
from ..transports.address import Address
from ..transports.loopback import Loopback
from ..verdict import Outcome, Verdict

#: What is wrong when the endpoint itself says so, by its verdict on the ping.
_CAUSES = {
    Outcome.COMPLETED: "one-worker",
    Outcome.INTERCEPTED: "before-request",
    Outcome.EXPIRED: "clock",
    Outcome.BUSY: "busy",
    Outcome.REPLAYED: "replayed",
}

#: Seconds to wait for a busy endpoint.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``url`` is where the app is thought to be, ``why`` who says so.

    ``cause`` names the trouble and ``remedy`` says in words what to do; both are None, and
    ``milliseconds`` is how long a signed ping took, when all is well.
    """

    url: str | None
    why: str
    milliseconds: float | None = None
    cause: str | None = None
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        return self.cause is None


def diagnose(app: Flask, url: str | None = None) -> Diagnosis:
    """Send a signed ping to ``url``, by default the configured address, and explain the answer.

    :raises ConfigError: if ``url`` is none.
    """
    config = state_of(app).config
    if url is not None:
        url, why = configuration.read({"ASYNC_HOOKS_URL": url}).url, "from --url"
    elif config.url is not None:
        url, why = config.url, "from 'ASYNC_HOOKS_URL'"
    else:
        unknown = AddressUnknown(
            "'ASYNC_HOOKS_URL' is not set, and this command has served no request that would show "
            "where the app listens. Name it with --url; a server finds it out by itself."
        )
        return Diagnosis(None, "unknown", cause=unknown.cause, remedy=str(unknown))
    assert url is not None  # noqa: S101 - a URL that was read from a URL
    started = time.perf_counter()
    try:
        verdict = _ping(Loopback(app, config, Address(url)), url)
    except TransportError as error:
        return Diagnosis(url, why, cause=error.cause, remedy=str(error))
    took = round((time.perf_counter() - started) * 1000, 1)
    if verdict.outcome is Outcome.COMPLETED and verdict.error is None:
        return Diagnosis(url, why, milliseconds=took)
    cause = _CAUSES.get(verdict.outcome, verdict.outcome)
    return Diagnosis(url, why, milliseconds=took, cause=cause, remedy=verdict.error)


def _ping(loopback: Loopback, url: str) -> Verdict:
    deadline = time.monotonic() + _PATIENCE
    while True:
        verdict = loopback.ping(url)
        if verdict.outcome is not Outcome.BUSY or time.monotonic() > deadline:
            return verdict
        time.sleep(0.1)
