"""``flask async-hooks …``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from flask import current_app
from flask.cli import AppGroup

from .doctor import Diagnosis, diagnose
from .errors import AsyncHooksError
from .log import one_line

cli = AppGroup("async-hooks", help="Look after what runs after the response.")


@cli.command()
@click.option("--url", help="Base URL to ask instead of ASYNC_HOOKS_URL.")
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
@click.pass_context
def doctor(context: click.Context, url: str | None, as_json: bool) -> None:
    """Ask the app over the network whether it reaches itself.

    Exits with 0 if it does and with 1 if not, and then says why and what to do.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    try:
        diagnosis = diagnose(app, url)
    except AsyncHooksError as error:
        raise click.ClickException(one_line(error)) from None
    click.echo(_as_json(diagnosis) if as_json else _in_words(diagnosis))
    context.exit(0 if diagnosis.ok else 1)


def _as_json(diagnosis: Diagnosis) -> str:
    return json.dumps({"ok": diagnosis.ok, **asdict(diagnosis)})


def _in_words(diagnosis: Diagnosis) -> str:
    where = f"Address: {diagnosis.url or 'unknown'} ({diagnosis.why})\n"
    if diagnosis.ok:
        return where + f"The app answered a signed ping in {diagnosis.milliseconds} ms."
    return where + f"Trouble: {diagnosis.cause}\n{one_line(diagnosis.remedy)}"
