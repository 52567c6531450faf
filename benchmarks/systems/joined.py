"""async_hooks in the app's own transactions: each view writes a row and commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..app import HandOver
from ..environment import database_url
from . import hooks


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Visit(db.Model):  # type: ignore[name-defined, misc]
    id: Mapped[int] = mapped_column(primary_key=True)


def connect(app: Flask) -> HandOver:
    # psycopg is what the extra brings; older SQLAlchemys would look for another driver.
    url = database_url().replace("postgresql:", "postgresql+psycopg:")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    with app.app_context():
        db.create_all()
    return hooks.connect(app, db=db)


@contextmanager
def transaction() -> Iterator[None]:
    """Write a row and commit, together with what is launched meanwhile."""
    db.session.add(Visit())
    yield
    db.session.commit()
