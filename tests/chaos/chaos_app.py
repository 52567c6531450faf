"""The app under fire: it launches, and notes outside the system what runs, begins and ends.

``LEDGER`` names the ledger, ``HOLD`` a file while which receivers wait. The outbox and all else
is configured by ``SITE_…``, as in ``app.config``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos.seams import may_die, note, wrap  # isort: skip - before the library, for its clock

import blinker
from flask import Flask, Response, current_app, request, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select

from async_hooks import AsyncHooks, AsyncTask, current_envelope
from async_hooks.current import current_attempt
from async_hooks.outbox import groups
from async_hooks.outbox.store import Store
from async_hooks.relay.claims import Claims
from async_hooks.signals import (
    task_discarded,
    task_failed,
    task_overdue,
    task_rejected,
    task_succeeded,
)
from async_hooks.transports.http_client import LeanClient
from async_hooks.transports.loopback import Loopback
from tests.chaos.effects import effects, leads

HOLD = Path(os.environ["HOLD"])

db = SQLAlchemy()
hooks = AsyncHooks(db=db)


class _Numbered(AsyncTask):
    """``how`` says what its receivers do: run, fail once, or kill their process."""

    action = "numbered"

    def prepare_data(self, sender: Any, /, **data: Any) -> dict[str, Any]:
        return data

    def backoff(self, attempt: int) -> float:
        return 0.2


@hooks.register
class Single(_Numbered):
    action = "single"


@hooks.register
class Split(_Numbered):
    action = "split"

    def finish(self, result: Any, data: dict[str, Any]) -> None:
        run("finish", **data)


@hooks.receiver("single", name="only")
def only(sender: Flask, **data: Any) -> None:
    run("only", **data)


def part(name: str) -> None:
    @hooks.receiver("split", name=name)
    def receive(sender: Flask, **data: Any) -> None:
        run(name, **data)


for _name in ("one", "two", "three"):
    part(_name)


def run(receiver: str, *, number: int, takes: float, how: str) -> None:
    """Note the begin, take ``takes`` seconds, write if the app has a database, note the end."""
    facts = {"id": current_envelope.id, "number": number, "receiver": receiver}
    facts["attempt"] = current_envelope.attempt
    facts["run"] = current_attempt.get().chaos = os.urandom(8).hex()  # type: ignore[attr-defined]
    note("begin", **facts)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(takes)
    while HOLD.exists():
        time.sleep(0.01)
    if how == "fail once" and current_envelope.attempt == 1:
        note("fail", **facts)
        raise RuntimeError("as ordered")
    if "sqlalchemy" in current_app.extensions:
        row = {"delivery": current_envelope.id, "number": number, "receiver": receiver}
        db.session.execute(effects.insert().values(row))
    note("end", **facts)


@task_succeeded.connect
def kept(sender: Flask, *, envelope: Any, **_: Any) -> None:
    current: Any = current_attempt.get()
    uid = getattr(current, "chaos", None)
    if uid is not None and current.verdict.is_recorded:
        note("kept", id=envelope.id, run=uid)


@task_failed.connect
def broke(sender: Flask, *, envelope: Any, **_: Any) -> None:
    uid = getattr(current_attempt.get(None), "chaos", None)
    if uid is not None:
        note("broke", id=envelope.id, run=uid)


@task_overdue.connect
def overdue(sender: Flask, *, envelope: Any) -> None:
    note("overdue", id=envelope.id, claim=envelope.lease)


@task_discarded.connect
def discarded(sender: Flask, *, envelope: Any, error: str) -> None:
    note("discarded", id=envelope.id, error=error)


@task_rejected.connect
def rejected(sender: Flask, *, envelope: Any, reason: str) -> None:
    if envelope is not None:
        note("rejected", id=envelope.id, attempt=envelope.attempt, reason=reason)


# -- what visitors do


def up() -> str:
    return str(os.getpid())


def launch(action: str, number: int) -> list[str]:
    """Launch ``count`` of ``action``, numbered from ``number``; answer with their ids."""
    count = request.args.get("count", 1, int)
    return [send(action, each) for each in range(number, number + count)]


def send(action: str, number: int) -> str:
    takes, how = request.args.get("takes", 0.0, float), request.args.get("how", "")
    signal_ = blinker.signal(action)
    ((_, launched),) = signal_.send(current_app, number=number, takes=takes, how=how)
    return str(launched)


def write(how: str, number: int) -> Any:
    """Launch beside a write of the app's own, and end the transaction as ``how`` says."""
    session = db.session
    if how == "read":
        session.execute(select(leads.c.id).limit(1)).all()
        return [send("single", number)]
    session.execute(leads.insert().values(number=number))
    if how == "late":
        return Response(stream_with_context(_late(number)))
    if how in ("savepoint", "nested"):
        savepoint = session.begin_nested()
        launched = [send("single", number)]
        (savepoint.rollback if how == "savepoint" else savepoint.commit)()
    else:
        launched = [send("single", number)]
    may_die("before-add")
    if how == "rollback":
        session.rollback()
    elif how != "forgotten":
        session.commit()
    may_die("after-add")
    if how == "twice":
        session.execute(leads.insert().values(number=number + 1))
        launched.append(send("single", number + 1))
        session.commit()
    return launched


def _late(number: int) -> Iterator[str]:
    launched = send("single", number)
    yield "["
    db.session.commit()
    yield f'"{launched}"]'


def create_app() -> Flask:
    wrap(Store, "add", before="before-add", after="after-add")
    wrap(groups, "_close", before="before-close", after="in-close")
    wrap(Loopback, "send", before="before-send")
    wrap(LeanClient, "_send", after="after-send")
    wrap(Claims, "settle", before="before-settle")
    app = Flask("chaos_app", instance_path=os.environ["CHAOS_FOLDER"])
    app.config.update(SECRET_KEY="a key for tests, thirty-two bytes or more")
    app.config.from_prefixed_env("SITE")
    app.add_url_rule("/", view_func=up)
    app.add_url_rule("/launch/<action>/<int:number>", view_func=launch)
    app.add_url_rule("/write/<how>/<int:number>", view_func=write)
    if app.config["ASYNC_HOOKS_OUTBOX"] == "app":
        db.init_app(app)
    hooks.init_app(app)
    return app


app = create_app()
