"""``flask async-hooks doctor``: ask the app over the real network, and explain its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
from flask import Flask, current_app

from .. import config as configuration
from ..errors import AddressUnknown, TransportError
from ..state import state_of
from ..transports.address import Address
from ..transports.loopback import Loopback
from ..verdict import Outcome
from .options import as_json, cli
from .render import show

#: The problem, by the endpoint's own verdict on the ping; else it is called as the outcome is.
_CAUSES = {
    Outcome.COMPLETED: "one-worker",
    Outcome.INTERCEPTED: "before-request",
    Outcome.EXPIRED: "clock",
}

#: Seconds to wait for a busy endpoint.
_PATIENCE = 5.0


@cli.command()
@click.option("--url", help="Base URL to ask instead of ASYNC_HOOKS_URL.")
@as_json
def doctor(url: str | None, as_json: bool) -> int:
    """Check over the network that the app reaches itself.

    Exits with 0 if it does, and with 1 if not; then the output names the problem and the remedy.
    """
    found = diagnose(current_app._get_current_object(), url)  # type: ignore[attr-defined]
    show(found, _words, as_json)
    return 0 if found["ok"] else 1


def _words(found: dict[str, Any]) -> Iterator[str]:
    yield f"Address: {found['url']} ({found['why']})" if found["url"] else "Address: unknown"
    if found["ok"]:
        yield f"The app answered a signed ping in {found['milliseconds']} ms."
    else:
        yield f"Problem: {found['cause']}"
        yield str(found["remedy"])


def diagnose(app: Flask, url: str | None = None) -> dict[str, Any]:
    """Send a signed ping to ``url``, by default the configured address, and explain the answer.

    ``why`` says where the address is from, ``cause`` names the problem, ``remedy`` what to do.

    :raises ConfigError: if ``url`` is not a base URL.
    """
    found: dict[str, Any] = dict.fromkeys(("ok", "url", "why", "milliseconds", "cause", "remedy"))
    found.update(ok=False, why="unknown")
    config = state_of(app).config
    try:
        found["url"], found["why"] = url, _ = _address(config, url)
        loopback, started = Loopback(app, config, Address(url)), time.perf_counter()
        while (verdict := loopback.ping(url)).outcome is Outcome.BUSY:
            if time.perf_counter() - started > _PATIENCE:
                break
            time.sleep(0.1)
    except TransportError as error:
        return {**found, "cause": error.cause, "remedy": str(error)}
    found["milliseconds"] = round((time.perf_counter() - started) * 1000, 1)
    if verdict.outcome is Outcome.COMPLETED and verdict.error is None:
        return {**found, "ok": True}
    cause = _CAUSES.get(verdict.outcome, verdict.outcome)
    return {**found, "cause": cause, "remedy": verdict.error}


def _address(config: configuration.Config, url: str | None) -> tuple[str, str]:
    """Return the URL to ask, and where it is from."""
    if url is not None:
        config, why = configuration.read({"ASYNC_HOOKS_URL": url}), "from --url"
    else:
        why = "from 'ASYNC_HOOKS_URL'"
    if config.url is None:
        raise AddressUnknown(
            "'ASYNC_HOOKS_URL' is not set, and this command has served no request that would show "
            "where the app listens. Name it with --url; a server detects it itself."
        )
    return config.url, why
