"""The two tables: a lead, and each of the calls made about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, cast

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import CursorResult, DateTime, Dialect, ForeignKey, TypeDecorator, event, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

PARTNERS = ("crm", "newsletter", "sales")


class Base(DeclarativeBase):
    pass


# Two server processes with eight threads each write here: a writer waits for its turn.
db = SQLAlchemy(model_class=Base, engine_options={"connect_args": {"timeout": 15}})


def init_app(app: Flask) -> None:
    db.init_app(app)
    with app.app_context():
        event.listen(db.engine, "connect", _let_read_while_one_writes)
        db.create_all()
        db.engine.dispose()  # because a server may fork now, and connections must not be shared


def _let_read_while_one_writes(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def now() -> datetime:
    return datetime.now(UTC)


class Moment(TypeDecorator[datetime]):
    """An aware time, kept as UTC."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


class State(StrEnum):
    """Where a call stands; ``labels.py`` says it to people."""

    WAITING = "waiting"
    CALLING = "calling"
    DELIVERED = "delivered"
    FAILED = "failed"


class Lead(db.Model):  # type: ignore[name-defined, misc]
    """Somebody who wrote to us. It comes with its calls, all waiting."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    message: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    #: How long our answer to it took.
    answer_seconds: Mapped[float | None]
    calls: Mapped[list[Call]] = relationship(back_populates="lead", order_by="Call.id")

    def __init__(self, **values: Any) -> None:
        super().__init__(**values, calls=[Call(partner=partner) for partner in PARTNERS])

    def call(self, partner: str) -> Call:
        return next(call for call in self.calls if call.partner == partner)

    @property
    def state(self) -> State:
        """Of all its calls' states the one to know about first."""
        states = {call.state for call in self.calls}
        order = (State.CALLING, State.WAITING, State.FAILED)
        return next((state for state in order if state in states), State.DELIVERED)

    @property
    def is_finished(self) -> bool:
        return self.state in (State.DELIVERED, State.FAILED)

    @property
    def seconds_in_series(self) -> float:
        """How long its calls take so far, laid end to end."""
        return sum(call.seconds or 0 for call in self.calls)


class Call(db.Model):  # type: ignore[name-defined, misc]
    """One partner's call about one lead, through all its attempts."""

    id: Mapped[int] = mapped_column(primary_key=True)
    lead_id: Mapped[int] = mapped_column(ForeignKey("lead.id"), index=True)
    partner: Mapped[str]
    recorded: Mapped[str] = mapped_column(default=State.WAITING)
    attempts: Mapped[int] = mapped_column(default=0)
    requested_at: Mapped[datetime] = mapped_column(Moment, default=now)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    finished_at: Mapped[datetime | None] = mapped_column(Moment)
    error: Mapped[str | None]
    lead: Mapped[Lead] = relationship(back_populates="calls")

    @property
    def is_lost(self) -> bool:
        """Whether it ran out of time with no result: its process must have died."""
        config = current_app.config
        if self.recorded == State.CALLING and self.started_at is not None:
            return now() - self.started_at > timedelta(seconds=2 * config["CALL_SECONDS"])
        waited = now() - self.requested_at
        return self.recorded == State.WAITING and waited.total_seconds() > config["WAIT_SECONDS"]

    @property
    def state(self) -> State:
        return State.FAILED if self.is_lost else State(self.recorded)

    @property
    def problem(self) -> str | None:
        return "It was interrupted, and no result came back." if self.is_lost else self.error

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took, or takes so far; None if that is unknown."""
        if self.started_at is None or self.is_lost:
            return None
        return ((self.finished_at or now()) - self.started_at).total_seconds()

    def request_again(self) -> bool:
        """Let a failed or lost call wait once more; False if there is no need to."""
        return self.state is State.FAILED and self._move(
            State.WAITING, requested_at=now(), started_at=None, finished_at=None, error=None
        )

    def begin(self) -> int | None:
        """Begin the attempt that it waits for, and return its number; None if it does not wait."""
        attempt = self.attempts + 1
        waits = self.recorded == State.WAITING
        begun = waits and self._move(State.CALLING, attempts=attempt, started_at=now())
        return attempt if begun else None

    def finish(self, attempt: int, state: State, *, error: str | None = None) -> None:
        """Record the result of ``attempt``, unless a later one has begun meanwhile."""
        if self.attempts == attempt and self.recorded == State.CALLING:
            self._move(state, finished_at=now(), error=error)

    def _move(self, state: State, **values: Any) -> bool:
        """Save ``state`` and ``values`` if nobody has moved this call since it was read."""
        unmoved = (
            Call.id == self.id,
            Call.recorded == self.recorded,
            Call.attempts == self.attempts,
        )
        moved = db.session.execute(update(Call).where(*unmoved).values(recorded=state, **values))
        db.session.commit()
        return cast("CursorResult[Any]", moved).rowcount == 1
