"""The group ``flask async-hooks``, and what its commands share: options, errors, exit codes."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from ..delivery import DeliveryState
from ..errors import AsyncHooksError
from ..log import one_line
from ..state import current_state
from ..validation import LONGEST, moment, needs_outbox

if TYPE_CHECKING:  # Comes with an optional extra.
    from ..outbox.admin import Outbox

_PERIOD = re.compile(r"(\d{1,10}(?:\.\d{1,6})?)([smhd]?)")
#: Characters that a name may have in the tables.
_LONGEST = 255

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Guarded(click.Command):
    """Exit with what the command returns; where the library raises, with a sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            ctx.exit(super().invoke(ctx) or 0)
        except AsyncHooksError as error:
            raise click.ClickException(one_line(error)) from None


cli = AppGroup("async-hooks", help="Inspect, manage and run deliveries.")
cli.command_class = Guarded

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
count = click.IntRange(min=1)


def period(text: str) -> float:
    """Return the seconds that ``text`` names, without a unit or with one: 45s, 30m, 12h, 7d."""
    match = _PERIOD.fullmatch(text)
    seconds = -1.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if not 0 <= seconds <= LONGEST:
        raise click.BadParameter(
            "expected 0 or more seconds, at most ten years, or e.g. 45s, 30m, 12h, 7d, "
            f"got: {text!r}"
        )
    return seconds


def instant(text: str) -> datetime:
    """Return the time that ``text`` names, in ISO 8601 with its offset from UTC."""
    try:
        return moment(datetime.fromisoformat(text))
    except ValueError:
        raise click.BadParameter(
            "expected a time with its offset from UTC, at most ten years from now, "
            f"e.g. 2027-01-31T18:00+01:00, got: {text!r}"
        ) from None


def name(text: str) -> str:
    """Return ``text``, a name or an id, if a database can store it."""
    if not 0 < len(text) <= _LONGEST or one_line(text) != text:
        raise click.BadParameter(
            f"expected at most {_LONGEST} characters, without control characters, got: {text!r}"
        )
    return text


def one_of(*states: DeliveryState) -> click.Choice[str]:
    """Return a choice of texts, because click calls the members of an enum by their names."""
    return click.Choice([state.value for state in states])


def needed_outbox() -> Outbox:
    """Return the app's outbox, or end the command with exit code 2."""
    state = current_state()
    state.prepare()
    outbox: Outbox | None = state.outbox
    if outbox is None:
        command = f"flask async-hooks {click.get_current_context().info_name}"
        raise click.UsageError(needs_outbox(command, repr(current_app.name)))
    return outbox
