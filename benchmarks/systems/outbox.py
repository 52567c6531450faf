"""async_hooks with an outbox in SQLite, carried by the web processes or by workers."""

from __future__ import annotations

import os
from pathlib import Path

from blinker import signal
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask

from ..app import HandOver, Lead
from ..notes import VARIABLE, note

lead_submitted = signal("lead_submitted")


class LeadTask(AsyncTask):
    action = "lead_submitted"

    def prepare_data(self, sender: Flask, *, lead: Lead) -> Lead:
        return lead


def connect(app: Flask, *, relay: bool = True) -> HandOver:
    file = Path(os.environ[VARIABLE]).parent / "outbox.db"
    app.config["ASYNC_HOOKS_OUTBOX"] = f"sqlite:///{file}"
    app.config["ASYNC_HOOKS_RELAY"] = relay
    # A benchmark of its own: nobody else's relays are to be woken.
    app.config["ASYNC_HOOKS_AUDIENCE"] = str(file)
    hooks = AsyncHooks(app)
    hooks.register(LeadTask)

    @hooks.receiver("lead_submitted", name="note")
    def take_note(sender: Flask, *, number: int, name: str, email: str) -> None:
        note(number)

    return lambda lead: lead_submitted.send(app, lead=lead)
