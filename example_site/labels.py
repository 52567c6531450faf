"""How the site says things to people: states, partners, errors, times."""

from __future__ import annotations

from datetime import UTC, datetime
from math import ceil

from flask import Flask

from async_hooks import Delivery, DeliveryState

from .calls import PartnerError

#: The five states of a delivery, and two ways of waiting that people want to tell apart.
STATES = {
    DeliveryState.AVAILABLE: "Waiting",
    "retrying": "Waiting for its next try",
    "parked": "Parked",
    DeliveryState.EXECUTING: "Calling",
    DeliveryState.COMPLETED: "Delivered",
    DeliveryState.DISCARDED: "Given up",
    DeliveryState.CANCELLED: "Cancelled",
}

PARTNERS = {"crm": "Customer records", "newsletter": "Newsletter", "sales": "Sales desk"}


def init_app(app: Flask) -> None:
    app.jinja_env.filters.update(
        view=view,
        state_label=STATES.__getitem__,
        partner_label=partner_label,
        problem=problem,
        duration=duration,
        countdown=countdown,
        date=date,
        clock=clock,
    )


def view(delivery: Delivery) -> str:
    """Return which of STATES ``delivery`` is in."""
    if delivery.state is DeliveryState.AVAILABLE:
        if delivery.receiver not in (None, *PARTNERS):
            return "parked"  # A partner that this code does not know, or no longer.
        if delivery.attempts:
            return "retrying"
    return delivery.state


def partner_label(partner: str) -> str:
    return PARTNERS.get(partner, partner)


def problem(delivery: Delivery) -> str:
    """Say why the last attempt did not succeed."""
    kind, _, words = (delivery.error or "").partition(": ")
    if kind == PartnerError.__name__:
        return words
    if delivery.crashes:
        return "The call was interrupted on our side."
    return "Something went wrong on our side."


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def countdown(moment: datetime) -> str:
    seconds = ceil((moment - datetime.now(UTC)).total_seconds())
    return f"in {seconds} s" if seconds > 0 else "now"


def date(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def clock(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%H:%M:%S} UTC"
