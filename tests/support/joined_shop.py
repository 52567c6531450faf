"""A shop whose outbox is its own database: its launches join its session's transactions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from typing import Any

import blinker
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    String,
    create_engine,
    delete,
    event,
    insert,
    text,
    update,
)
from sqlalchemy.orm import declarative_base, scoped_session, sessionmaker

from async_hooks import AsyncHooks, AsyncTask, Delivery, DeliveryState
from async_hooks.envelope import Envelope
from async_hooks.signals import task_discarded
from tests.support.apps import make_task, plain_app


class Shop:
    """Takes orders. No relay runs unless told otherwise.

    Its session is Flask-SQLAlchemy's or, if ``is_plain``, the thread's, removed as is usual.
    ``hooks_first`` decides whose teardown comes first; ``says_begin`` lets SQLite begin when
    SQLAlchemy says, as its documentation advises. ``of`` makes it another app of that shop's
    session and hooks; ``before`` is called before either is initialised.
    """

    def __init__(
        self,
        url: str,
        action: str,
        *,
        is_plain: bool = False,
        hooks_first: bool = False,
        says_begin: bool = False,
        of: Shop | None = None,
        before: Callable[[Flask], object] = lambda app: None,
        **config: Any,
    ) -> None:
        self.action = action
        self.app = plain_app(
            SQLALCHEMY_DATABASE_URI=url,
            ASYNC_HOOKS_OUTBOX="app",
            PROPAGATE_EXCEPTIONS=False,
            **{"ASYNC_HOOKS_RELAY": False, "ASYNC_HOOKS_TRANSPORT": "in_process", **config},
        )
        before(self.app)
        self.db: SQLAlchemy = of.db if of is not None else SQLAlchemy()
        self.session: Any = self.db.session
        init_session, base = self.db.init_app, self.db.Model
        options: dict[str, Any] = {"db": self.db}
        if is_plain:
            self.engine = create_engine(url)
            self.session = scoped_session(sessionmaker(self.engine))
            init_session, base = self._remove_session_after, declarative_base()
            options = {"session": self.session}
        self.hooks: AsyncHooks = of.hooks if of is not None else AsyncHooks(**options)
        inits = [init_session, self.hooks.init_app]
        for init in reversed(inits) if hooks_first else inits:
            init(self.app)
        self.task: type[AsyncTask] = of.task if of is not None else make_task(self.hooks, action)
        self.Order: Any = of.Order if of is not None else _order_type(base)
        self.view: Callable[[], Any] = lambda: ""
        self.app.add_url_rule("/", view_func=lambda: self.view())
        with self.app.app_context():
            self.engine = self.engine if is_plain else self.db.engine
            if self.engine.dialect.name == "sqlite":
                _set_up(self.engine, says_begin)
            base.metadata.create_all(self.engine)
            is_mariadb = self.engine.dialect.name == "mysql"
            self.write(
                "CREATE TABLE IF NOT EXISTS items (order_id INTEGER REFERENCES orders (id)"
                + (")" if is_mariadb else " DEFERRABLE INITIALLY DEFERRED)")
            )
            if self.engine.dialect.name != "sqlite":
                self.hooks.outbox.create()

    def _remove_session_after(self, app: Flask) -> None:
        app.teardown_appcontext(lambda error: self.session.remove())

    def launch(self, n: int) -> str:
        """Send the action's signal; return the id of what it launched."""
        answers = blinker.signal(self.action).send(self.app, n=n)
        [launched] = [answer for _, answer in answers if answer is not None]
        return str(launched)

    def order(self, number: int) -> Any:
        """Add an order to the session; its number is unique."""
        order = self.Order(number=number)
        self.session.add(order)
        return order

    def find(self, number: int) -> Any:
        return self.session.query(self.Order).filter_by(number=number).one()

    def execute(self, sql: str) -> Any:
        return self.session.execute(text(sql))

    def visit(self, view: Callable[[], Any]) -> bytes:
        """Request ``view``, which answers what it returns if that is a stream, else nothing."""
        self.view = lambda: answer if isinstance(answer := view(), Iterator) else ""
        response = self.app.test_client().get("/")
        body: bytes = response.data
        assert response.status_code == 200, body
        return body

    def break_at_commit(self) -> None:
        """Write what is refused at the commit, or, by MariaDB, at once."""
        self.execute("INSERT INTO items (order_id) VALUES (-1)")

    def orders(self) -> list[int]:
        """Return the numbers of the orders that are committed."""
        with self.engine.connect() as connection:
            return sorted(connection.scalars(text("SELECT number FROM orders")))

    def write(self, *statements: str) -> None:
        """Execute and commit ``statements`` outside of the session."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def deliveries(self) -> list[Delivery]:
        with self.app.app_context():
            return self.hooks.outbox.find(limit=None)

    def sent(self) -> list[int]:
        """Return the numbers of what waits to be delivered."""
        return waiting(self.deliveries())


def in_threads(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def waiting(deliveries: Iterable[Delivery]) -> list[int]:
    """Return the numbers of those that wait to be delivered."""
    found = (each.data["n"] for each in deliveries if each.state is DeliveryState.AVAILABLE)
    return sorted(found)


def _order_type(base: Any) -> Any:
    class Order(base):  # type: ignore[misc]
        __tablename__ = "orders"
        id = Column(Integer, primary_key=True)
        number = Column(Integer, unique=True)
        note = Column(String(50))

    return Order


def _set_up(engine: Engine, says_begin: bool) -> None:
    """Let SQLite check foreign keys, and begin when SQLAlchemy says so."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        if says_begin:
            connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        if says_begin:
            connection.exec_driver_sql("BEGIN")


@contextmanager
def losses_heard() -> Iterator[Callable[[], list[int]]]:
    """Give what returns the numbers of what was dropped; a signal and a WARNING said each."""
    said: list[Envelope] = []
    logger, handler = logging.getLogger("async_hooks"), BufferingHandler(10**9)

    def note(sender: Any, *, envelope: Envelope, error: str) -> None:
        said.append(envelope)

    def losses() -> list[int]:
        warned = [each.getMessage() for each in handler.buffer if each.levelno == logging.WARNING]
        for envelope, warning in zip(said, warned, strict=True):
            assert f"Envelope {envelope.id} of task" in warning
            assert "session ended without the commit" in warning
        return sorted(envelope.data["n"] for envelope in said)

    logger.addHandler(handler)
    with task_discarded.connected_to(note):
        yield losses
    logger.removeHandler(handler)


_INSERT = "INSERT INTO orders (number) VALUES"
_COUNT = "SELECT count(*) FROM orders"

#: Ways to write a row of a number that is not there yet; the first tells nobody before a flush.
INSERTS: dict[str, Callable[[Shop, int], object]] = {
    "add": lambda shop, n: shop.order(n),
    "add and flush": lambda shop, n: (shop.order(n), shop.session.flush()),
    "text": lambda shop, n: shop.execute(f"{_INSERT} ({n})"),
    "text after a comment": lambda shop, n: shop.execute(f"-- SELECT\n/* 1 */ {_INSERT} ({n})"),
    "core": lambda shop, n: shop.session.connection().execute(
        insert(shop.Order.__table__).values(number=n)
    ),
    "driver": lambda shop, n: shop.session.connection().exec_driver_sql(f"{_INSERT} ({n})"),
    "bulk": lambda shop, n: shop.session.bulk_insert_mappings(shop.Order, [{"number": n}]),
    "returning": lambda shop, n: shop.session.scalars(
        insert(shop.Order).returning(shop.Order), [{"number": n}]
    ).all(),
}

#: Ways to change the row of a number that is there.
CHANGES: dict[str, Callable[[Shop, int], object]] = {
    "change": lambda shop, n: setattr(shop.find(n), "note", "changed"),
    "delete": lambda shop, n: shop.session.delete(shop.find(n)),
    "bulk change": lambda shop, n: shop.session.execute(
        update(shop.Order).filter_by(number=n).values(note="changed")
    ),
    "bulk delete": lambda shop, n: shop.session.execute(delete(shop.Order).filter_by(number=n)),
}

#: Ways to read alone.
READS: dict[str, Callable[[Shop], object]] = {
    "query": lambda shop: shop.session.query(shop.Order).first(),
    "text": lambda shop: shop.execute(_COUNT),
    "text after a comment": lambda shop: shop.execute(f"/* a view */ -- that reads\n {_COUNT}"),
    "common table": lambda shop: shop.execute(f"WITH n AS ({_COUNT}) SELECT * FROM n"),
    "driver": lambda shop: shop.session.connection().exec_driver_sql(_COUNT),
    "the same again": lambda shop: setattr(shop.find(0), "note", shop.find(0).note),
}
