"""async_hooks: a signal is sent, its receiver runs in a fresh request, kept by an outbox if any."""

from __future__ import annotations

from typing import Any

from blinker import signal
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask

from ..app import HandOver, Lead
from ..environment import database_url, name
from .work import work

lead_submitted = signal("lead_submitted")


class LeadTask(AsyncTask):
    action = "lead_submitted"

    def prepare_data(self, sender: Flask, *, lead: Lead) -> Lead:
        return lead


def connect(app: Flask, *, db: Any = None) -> HandOver:
    if url := database_url():
        app.config.setdefault("ASYNC_HOOKS_OUTBOX", url)
    # A benchmark of its own: nobody else's relays are to be woken.
    app.config["ASYNC_HOOKS_AUDIENCE"] = name()
    hooks = AsyncHooks(app, db=db)
    hooks.register(LeadTask)

    @hooks.receiver("lead_submitted", name="work")
    def receive(sender: Flask, **lead: Any) -> None:
        work(lead)

    return lambda lead: lead_submitted.send(app, lead=lead)
