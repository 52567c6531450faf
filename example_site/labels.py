"""How the site says things to people: states, partners, times."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Flask

from .models import State

STATES = {
    State.WAITING: "Waiting",
    State.CALLING: "Calling",
    State.DELIVERED: "Delivered",
    State.FAILED: "Failed",
}

PARTNERS = {"crm": "Customer records", "newsletter": "Newsletter", "sales": "Sales desk"}


def init_app(app: Flask) -> None:
    app.jinja_env.filters.update(
        state_label=STATES.__getitem__,
        partner_label=PARTNERS.__getitem__,
        duration=duration,
        date=date,
        clock=clock,
    )


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def date(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def clock(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%H:%M:%S} UTC"
