"""The two tables: a lead, and each call about it that a partner took."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import DateTime, Dialect, ForeignKey, TypeDecorator, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


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


class Lead(db.Model):  # type: ignore[name-defined, misc]
    """Somebody who wrote to us."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    message: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    #: How long our answer to it took.
    answer_seconds: Mapped[float | None]
    calls: Mapped[list[Call]] = relationship(back_populates="lead")

    @property
    def call_seconds(self) -> dict[str, float]:
        """How long each partner took, of those that took the call."""
        return {call.partner: call.seconds for call in self.calls}


class Call(db.Model):  # type: ignore[name-defined, misc]
    """A call that a partner took. Of all others the outbox knows."""

    id: Mapped[int] = mapped_column(primary_key=True)
    lead_id: Mapped[int] = mapped_column(ForeignKey("lead.id"), index=True)
    partner: Mapped[str]
    seconds: Mapped[float]
    lead: Mapped[Lead] = relationship(back_populates="calls")
