"""An app in several releases, which share an outbox: ``RELEASE`` says which one this is.

first     orders.Paid, with the receivers mail and stock; the data is {"n": …}
renamed   orders.Settled, that was orders.Paid; mail and books; the data is {"number": …}
nameless  the same, and has forgotten what it was called
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from blinker import signal
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, current_envelope

RELEASE = os.environ["RELEASE"]
IS_FIRST = RELEASE == "first"

app = Flask("release", instance_path=os.environ["FOLDER"])
app.config.update(
    SECRET_KEY=os.environ["KEY"],
    SECRET_KEY_FALLBACKS=os.environ.get("FORMER_KEYS", "").split(),
    ASYNC_HOOKS_OUTBOX=os.environ["OUTBOX"],
    ASYNC_HOOKS_AUDIENCE=os.environ.get("AUDIENCE", "release").split(),
    ASYNC_HOOKS_RELAY=os.environ.get("RELAY") != "no",
    ASYNC_HOOKS_LEASE=3,
)
hooks = AsyncHooks(app)


class Order(AsyncTask):
    action = "order_paid"
    name = "orders.Paid" if IS_FIRST else "orders.Settled"
    aliases = ("orders.Paid",) if RELEASE == "renamed" else ()

    def prepare_data(self, sender: Flask, /, *, number: int) -> dict[str, int]:
        return {"n" if IS_FIRST else "number": number}

    def run_action(self, data: dict[str, Any]) -> Any:
        time.sleep(float(os.environ.get("SECONDS", "0")))
        return self.send(number=data["number"] if "number" in data else data["n"])


hooks.register(Order)


def note(receiver: str) -> None:
    @hooks.receiver("order_paid", name=receiver)
    def write_down(sender: Flask, *, number: int) -> None:
        line = {"ran": receiver, "number": number, "attempt": current_envelope.attempt}
        descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, json.dumps(line).encode() + b"\n")
        os.close(descriptor)


note("mail")
note("stock" if IS_FIRST else "books")


@app.get("/pay/<int:number>")
def pay(number: int) -> str:
    signal("order_paid").send(app, number=number)
    return "paid"


@app.get("/")
def look() -> dict[str, Any]:
    found = hooks.outbox.find(limit=None)
    return {
        "counts": hooks.outbox.counts(),
        "waiting": sorted({f"{d.task} {d.receiver}" for d in found if not d.is_finished}),
        "attempts": sorted({d.attempts for d in found if d.state == "completed"}),
        "begun": sorted({d.attempts for d in found if not d.is_finished}),
        "crashes": sum(d.crashes for d in found),
    }
