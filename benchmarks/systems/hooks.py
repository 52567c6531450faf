"""async_hooks: a signal is sent, its receiver runs in a fresh request over the loopback."""

from __future__ import annotations

from typing import Any

import blinker
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, async_signal

from ..app import HandOver, Lead
from ..notes import note

hooks = AsyncHooks()


@hooks.register
class LeadTask(AsyncTask):
    action = "lead_submitted"

    def prepare_data(self, sender: Any, /, **kwargs: Any) -> Lead:
        lead: Lead = kwargs["lead"]
        return lead


@async_signal("lead_submitted").connect
def receive(sender: Flask, /, *, number: int, **rest: str) -> None:
    note(number)


def connect(app: Flask) -> HandOver:
    app.config.update(
        # Everything goes over the loopback or is missed in the counts: no short cut counts.
        ASYNC_HOOKS_FALLBACK=None,
        ASYNC_HOOKS_QUEUE_SIZE=1_000_000,
    )
    hooks.init_app(app)
    lead_submitted = blinker.signal("lead_submitted")
    return lambda lead: lead_submitted.send(app, lead=lead)
