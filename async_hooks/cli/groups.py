"""``flask async-hooks`` pause-delivery, resume-delivery: hold a delivery, or a group as a whole."""

from __future__ import annotations

from collections.abc import Callable

import click

from .options import cli, name, needed_outbox
from .render import say


@cli.command()
@click.argument("delivery_id", metavar="ID", type=name)
def pause_delivery(delivery_id: str) -> int:
    """Pause a delivery: no attempt starts until it is resumed.

    Of a launch with several receivers, that means all of them. A running attempt goes on.

    Exits with 0, with 1 if there is nothing to pause or the database can't be used, and with 2 if
    the app has no outbox.
    """
    return _change(needed_outbox().pause_delivery, delivery_id, "paused", "is paused, or finished")


@cli.command()
@click.argument("delivery_id", metavar="ID", type=name)
def resume_delivery(delivery_id: str) -> int:
    """Resume a paused delivery, or all receivers of a launch.

    Exits with 0, with 1 if it was not paused or the database can't be used, and with 2 if the app
    has no outbox.
    """
    return _change(needed_outbox().resume_delivery, delivery_id, "resumed", "was not paused")


def _change(change: Callable[[str], bool], delivery_id: str, past: str, refusal: str) -> int:
    if change(delivery_id):
        say(f"Delivery {delivery_id} is {past}.")
        return 0
    is_there = needed_outbox().get(delivery_id) is not None
    text = f"Delivery {delivery_id} {refusal}." if is_there else needed_outbox().why(delivery_id)
    say(text, err=True)
    return 1
