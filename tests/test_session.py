"""The outbox "app": launches join the transactions of the app's own session."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import blinker
import pytest
from flask import Flask, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    String,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import declarative_base, scoped_session, sessionmaker

from async_hooks import AsyncHooks, AsyncTask, Delivery, DeliveryState
from async_hooks.envelope import Envelope
from async_hooks.outbox.ledger import Ledger
from async_hooks.outbox.schema import deliveries
from async_hooks.receivers import kinds_of
from async_hooks.relay.claims import Claims
from async_hooks.relay.relay import Relay
from async_hooks.state import state_of
from async_hooks.transports.in_process import InProcess
from async_hooks.verdict import Outcome, Verdict
from tests.support.apps import make_task, plain_app
from tests.support.databases import KINDS, fresh_database
from tests.support.facts import Facts

READING = "SELECT count(*) FROM orders"


class Shop:
    """An app whose outbox is its own database. Nothing relays but the tests do, by ``work``."""

    def __init__(
        self,
        url: str,
        action: str,
        *,
        hooks_first: bool = False,
        before: Callable[[Flask], object] = lambda app: None,
        **config: Any,
    ) -> None:
        self.action = action
        self.db = SQLAlchemy()
        self.hooks = AsyncHooks(db=self.db)
        self.app = plain_app(
            SQLALCHEMY_DATABASE_URI=url,
            ASYNC_HOOKS_OUTBOX="app",
            PROPAGATE_EXCEPTIONS=False,
            **{"ASYNC_HOOKS_RELAY": False, "ASYNC_HOOKS_TRANSPORT": "in_process", **config},
        )
        before(self.app)
        for extension in (self.hooks, self.db) if hooks_first else (self.db, self.hooks):
            extension.init_app(self.app)
        self.task: type[AsyncTask] = make_task(self.hooks, action)
        self.view: Callable[[], Any] = lambda: ""
        self.app.add_url_rule("/", view_func=lambda: self.view())
        self.Order = _model(self.db)
        with self.app.app_context():
            self.db.create_all()
            if self.db.engine.dialect.name != "sqlite":
                self.hooks.outbox.migrate()

    @property
    def session(self) -> Any:
        return self.db.session

    def launch(self, n: int) -> str:
        """Send the action's signal; return the id of what it launched."""
        [(_, launched)] = blinker.signal(self.action).send(self.app, n=n)
        assert isinstance(launched, str)
        return launched

    def order(self, number: int) -> Any:
        """Add an order to the session; its number is unique."""
        order = self.Order(number=number)
        self.session.add(order)
        return order

    def visit(self, view: Callable[[], Any], status: int = 200) -> bytes:
        """Request ``view``, which says nothing if it returns nothing."""

        def answer() -> Any:
            said = view()
            return "" if said is None else said

        self.view = answer
        response = self.app.test_client().get("/")
        body: bytes = response.data
        assert response.status_code == status, body
        return body

    def orders(self) -> list[int]:
        with self.app.app_context():
            found = self.session.scalars(select(self.Order.number)).all()
        return sorted(found)

    def deliveries(self) -> list[Delivery]:
        with self.app.app_context():
            return self.hooks.outbox.find(limit=None)

    def sent(self) -> list[int]:
        """Return the numbers of what waits to be delivered."""
        waiting = [each for each in self.deliveries() if each.state is DeliveryState.AVAILABLE]
        return sorted(each.data["n"] for each in waiting)

    def receive(self, receiver: Callable[..., Any], name: str = "receiver", **options: Any) -> None:
        options = {"backoff": lambda attempt: 0, **options}
        self.hooks.receiver(self.action, name=name, **options)(receiver)

    @property
    def ledger(self) -> Ledger:
        ledger = state_of(self.app).ledger
        assert isinstance(ledger, Ledger)
        return ledger

    def claim(self) -> list[Envelope]:
        return self.ledger.claim("a lease", kinds_of(state_of(self.app)), 100)[0]

    def run(self, envelope: Envelope) -> Verdict:
        return InProcess(self.app).send(envelope)

    def work(self, then: Callable[[], object] = lambda: None) -> list[Verdict]:
        """Run what is due, each once, call ``then`` after each, and settle it."""
        config = state_of(self.app).config
        claims = Claims(self.app, config, self.ledger, take=lambda envelope: None)
        verdicts = []
        for envelope in self.claim():
            verdicts.append(self.run(envelope))
            then()
            claims.settle(envelope, verdicts[-1])
        return verdicts

    def steal(self) -> None:
        """Let every delivery that executes be another's, as after a lease that ran out."""
        stolen = update(deliveries).where(deliveries.c.state == "executing").values(lease="another")
        self.ledger.database.write(lambda connection: connection.execute(stolen))

    def clear(self) -> None:
        """Leave the database as the next test wants it."""
        with self.app.app_context(), self.db.engine.begin() as connection:
            connection.execute(delete(deliveries))
            connection.execute(delete(self.Order))

    def close(self) -> None:
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


def _model(db: SQLAlchemy) -> Any:
    class Order(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "orders"
        id = Column(Integer, primary_key=True)
        number = Column(Integer, unique=True)
        note = Column(String(50))

    return Order


@pytest.fixture(params=["db_first", "hooks_first"])
def shop(tmp_path: Path, action: str, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A shop on SQLite: what comes first decides whose teardown comes first."""
    made = Shop(f"sqlite:///{tmp_path}/app.db", action, hooks_first=request.param == "hooks_first")
    yield made
    made.close()


@pytest.fixture(scope="module")
def server_url() -> Iterator[Callable[[str], str]]:
    """Give the URL of this module's database on the server of a kind."""
    with ExitStack() as stack:

        @cache
        def url(kind: str) -> str:
            return stack.enter_context(fresh_database(kind, Path()))

        yield url


@pytest.fixture(params=KINDS)
def any_shop(
    tmp_path: Path,
    action: str,
    server_url: Callable[[str], str],
    request: pytest.FixtureRequest,
) -> Iterator[Shop]:
    is_sqlite = request.param == "sqlite"
    made = Shop(f"sqlite:///{tmp_path}/app.db" if is_sqlite else server_url(request.param), action)
    yield made
    if not is_sqlite:
        made.clear()
    made.close()


class Losses:
    """What was dropped: said by a WARNING, and by task_discarded, each time."""

    def __init__(self, facts: Facts, caplog: pytest.LogCaptureFixture) -> None:
        self._facts = facts
        self._caplog = caplog

    def __call__(self) -> list[int]:
        discarded = [said["envelope"] for said in self._facts.of("discarded")]
        warned = [
            record.getMessage()
            for record in self._caplog.records
            if record.name == "async_hooks" and record.levelno == logging.WARNING
        ]
        assert len(warned) == len(discarded), warned
        for envelope, warning in zip(discarded, warned, strict=True):
            assert envelope.id in warning
        return sorted(envelope.data["n"] for envelope in discarded)


@pytest.fixture
def losses(facts: Facts, caplog: pytest.LogCaptureFixture) -> Losses:
    return Losses(facts, caplog)


# -- commit and rollback --------------------------------------------------------------------------


def test_commit_is_sent(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop

    def view() -> None:
        shop.order(1)
        shop.launch(1)
        assert shop.sent() == []
        shop.session.commit()
        assert shop.sent() == [1]

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([1], [1], [])


def test_a_launch_before_anything_else_joins_what_follows(shop: Shop, losses: Losses) -> None:
    def view(end: Callable[[], None]) -> None:
        shop.launch(1)
        shop.order(1)
        end()

    shop.visit(lambda: view(shop.session.rollback))
    assert (shop.sent(), losses()) == ([], [])
    shop.visit(lambda: view(shop.session.commit))
    assert (shop.sent(), losses()) == ([1], [])


def test_rollback_means_it_never_existed(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop

    def view() -> None:
        shop.order(1)
        shop.session.flush()
        shop.launch(1)
        shop.session.rollback()

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([], [], [])


def test_the_row_of_a_commit_is_not_leased(shop: Shop) -> None:
    def view() -> None:
        shop.order(1)
        shop.launch(1)
        shop.session.commit()
        [row] = shop.deliveries()
        assert row.state is DeliveryState.AVAILABLE
        assert row.attempts == 0

    shop.visit(view)


def test_dispatch_joins_as_signals_do(shop: Shop, losses: Losses) -> None:
    def view(end: Callable[[], None]) -> None:
        shop.order(1)
        shop.task.dispatch({"n": 1})
        end()

    shop.visit(lambda: view(shop.session.rollback))
    assert shop.sent() == []
    shop.visit(lambda: view(shop.session.commit))
    assert (shop.sent(), losses()) == ([1], [])


def test_launches_before_and_after_commits_go_with_their_own(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        shop.launch(1)
        shop.order(1)
        shop.launch(2)
        shop.session.commit()
        assert shop.sent() == [1, 2]
        shop.launch(3)
        shop.order(2)
        shop.session.commit()
        assert shop.sent() == [1, 2, 3]
        shop.launch(4)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1, 2, 3, 4], [])


def test_a_commit_that_only_read_is_sent_by_then(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        shop.session.execute(text(READING))
        shop.launch(1)
        shop.session.commit()
        assert shop.sent() == [1]
        shop.session.rollback()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_what_was_committed_survives_a_later_rollback(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        shop.order(1)
        shop.launch(1)
        shop.session.commit()
        shop.order(2)
        shop.launch(2)
        shop.session.rollback()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_a_commit_that_fails_drops_what_it_had_and_a_retry_sends_once(
    any_shop: Shop, losses: Losses
) -> None:
    shop = any_shop

    def view() -> None:
        shop.order(1)
        shop.session.commit()
        shop.order(1)
        shop.launch(1)
        with pytest.raises(IntegrityError):
            shop.session.commit()
        shop.session.rollback()
        shop.order(2)
        shop.launch(2)
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([2], [1, 2], [])


@pytest.mark.parametrize("step", ["flush", "commit"])
def test_a_write_that_fails_and_raises_drops_what_it_had(shop: Shop, step: str) -> None:
    def view() -> None:
        shop.order(1)
        shop.session.commit()
        shop.order(1)
        shop.launch(1)
        getattr(shop.session, step)()

    shop.visit(view, status=500)
    assert shop.sent() == []


def test_what_is_launched_once_a_flush_has_failed_is_sent(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        shop.order(1)
        shop.session.commit()
        shop.order(1)
        with pytest.raises(IntegrityError):
            shop.session.flush()
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_what_the_app_launches_while_it_flushes_is_sent_by_that_commit(
    shop: Shop, losses: Losses
) -> None:
    def launch(mapper: Any, connection: Any, order: Any) -> None:
        shop.launch(order.number)

    event.listen(shop.Order, "after_insert", launch)

    def view() -> None:
        shop.order(1)
        shop.session.commit()
        assert shop.sent() == [1]
        shop.order(1)
        with pytest.raises(IntegrityError):
            shop.session.commit()
        shop.session.rollback()
        shop.order(2)
        shop.session.flush()
        shop.session.rollback()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


# -- savepoints -----------------------------------------------------------------------------------


def test_a_savepoint_rolled_back_drops_only_its_own(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop

    def view() -> None:
        shop.order(1)
        shop.launch(1)
        savepoint = shop.session.begin_nested()
        shop.order(2)
        shop.launch(2)
        savepoint.rollback()
        shop.launch(3)
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([1, 3], [1], [])


def test_a_savepoint_that_fails_drops_only_its_own(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop

    def fail() -> None:
        with shop.session.begin_nested():
            shop.launch(2)
            shop.order(1)

    def view() -> None:
        shop.order(1)
        shop.launch(1)
        with pytest.raises(IntegrityError):
            fail()
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([1], [1], [])


def test_a_savepoint_released_keeps_its_own(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop

    def view() -> None:
        with shop.session.begin_nested():
            shop.order(1)
            shop.launch(1)
        assert shop.sent() == []
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_a_released_savepoint_goes_with_the_transaction_around_it(
    shop: Shop, losses: Losses
) -> None:
    def view() -> None:
        with shop.session.begin_nested():
            shop.order(1)
            shop.launch(1)
        shop.session.rollback()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([], [])


def test_savepoints_nest(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop

    def view() -> None:
        shop.order(0)
        with shop.session.begin_nested():
            shop.launch(1)
            inner = shop.session.begin_nested()
            shop.launch(2)
            with shop.session.begin_nested():
                shop.launch(3)
            inner.rollback()
            with shop.session.begin_nested():
                shop.order(4)
                shop.launch(4)
        outer = shop.session.begin_nested()
        with shop.session.begin_nested():
            shop.launch(5)
        shop.launch(6)
        outer.rollback()
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1, 4], [])


@pytest.mark.parametrize("by", ["session", "transaction"])
def test_commit_while_a_savepoint_is_open_sends_all(shop: Shop, losses: Losses, by: str) -> None:
    def view() -> None:
        shop.order(1)
        shop.launch(1)
        root = shop.session().get_transaction()
        shop.session.begin_nested()
        shop.order(2)
        shop.launch(2)
        (shop.session if by == "session" else root).commit()
        assert shop.sent() == [1, 2]

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([1, 2], [1, 2], [])


def test_rollback_while_a_savepoint_is_open_drops_all(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        shop.order(1)
        shop.launch(1)
        shop.session.begin_nested()
        shop.launch(2)
        shop.session.rollback()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([], [])


def test_a_savepoint_open_at_the_end_of_a_view_that_read_delivers(
    shop: Shop, losses: Losses
) -> None:
    def view() -> None:
        shop.session.begin_nested()
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


# -- without a commit -----------------------------------------------------------------------------


def read_by_session(shop: Shop) -> None:
    shop.session.execute(select(shop.Order)).all()
    assert shop.session().in_transaction()


def read_by_text(shop: Shop) -> None:
    shop.session.execute(text(READING))


def read_by_common_table(shop: Shop) -> None:
    shop.session.execute(text(f"WITH counted AS ({READING}) SELECT * FROM counted"))


def read_after_comment(shop: Shop) -> None:
    shop.session.execute(text(f"/* a view */ -- that reads\n {READING}"))


def read_by_driver(shop: Shop) -> None:
    shop.session.connection().exec_driver_sql(READING)


READS = [read_by_session, read_by_text, read_by_common_table, read_after_comment, read_by_driver]


@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
def test_a_view_that_only_reads_delivers(
    any_shop: Shop, losses: Losses, read: Callable[[Shop], None]
) -> None:
    shop = any_shop

    def view() -> None:
        read(shop)
        shop.launch(1)
        read(shop)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_a_view_that_leaves_the_session_alone_delivers(shop: Shop, losses: Losses) -> None:
    shop.visit(lambda: str(shop.launch(1)))
    assert (shop.sent(), losses()) == ([1], [])


def write_unflushed(shop: Shop) -> None:
    shop.order(2)


def write_flushed(shop: Shop) -> None:
    shop.order(2)
    shop.session.flush()


def write_by_change(shop: Shop) -> None:
    shop.session.scalars(select(shop.Order)).one().note = "changed"


def write_by_delete(shop: Shop) -> None:
    shop.session.delete(shop.session.scalars(select(shop.Order)).one())


def write_by_text(shop: Shop) -> None:
    shop.session.execute(text("INSERT INTO orders (number) VALUES (2)"))


def write_by_text_after_comment(shop: Shop) -> None:
    shop.session.execute(text("-- SELECT\nUPDATE orders SET note = 'changed'"))


def write_by_core(shop: Shop) -> None:
    shop.session.connection().execute(insert(shop.Order.__table__).values(number=2))


def write_by_driver(shop: Shop) -> None:
    shop.session.connection().exec_driver_sql("INSERT INTO orders (number) VALUES (2)")


def write_in_bulk(shop: Shop) -> None:
    shop.session.execute(update(shop.Order).values(note="changed"))


def write_many(shop: Shop) -> None:
    shop.session.bulk_insert_mappings(shop.Order, [{"number": 2}, {"number": 3}])


def write_by_returning(shop: Shop) -> None:
    writing = insert(shop.Order).returning(shop.Order)
    shop.session.scalars(writing, [{"number": 2}, {"number": 3}]).all()


WRITES = [
    write_unflushed,
    write_flushed,
    write_by_change,
    write_by_delete,
    write_by_text,
    write_by_text_after_comment,
    write_by_core,
    write_by_driver,
    write_in_bulk,
    write_many,
    write_by_returning,
]


@pytest.mark.parametrize("order", ["write_first", "launch_first"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_writes_without_a_commit_drop_the_launch_loudly(
    shop: Shop, losses: Losses, write: Callable[[Shop], None], order: str
) -> None:
    with shop.app.app_context():
        shop.order(1)
        shop.session.commit()

    def view() -> None:
        if order == "launch_first":
            shop.launch(1)
        write(shop)
        if order == "write_first":
            shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([], [1], [1])


@pytest.mark.parametrize("write", [write_flushed, write_by_text, write_by_driver])
def test_a_forgotten_commit_is_noticed_in_every_database(
    any_shop: Shop, losses: Losses, write: Callable[[Shop], None]
) -> None:
    shop = any_shop

    def view() -> None:
        write(shop)
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([], [1])


def test_the_very_first_transaction_of_an_engine_is_watched(
    tmp_path: Path, action: str, losses: Losses
) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    Shop(url, action).close()
    shop = Shop(url, f"{action}_again")

    def view() -> None:
        write_by_text(shop)
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([], [1])
    shop.close()


def test_what_a_savepoint_wrote_and_undid_loses_no_launch(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        savepoint = shop.session.begin_nested()
        write_flushed(shop)
        savepoint.rollback()
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_an_order_that_was_looked_at_counts_as_read(shop: Shop, losses: Losses) -> None:
    with shop.app.app_context():
        shop.order(1)
        shop.session.commit()

    def view() -> None:
        order = shop.session.scalars(select(shop.Order)).one()
        order.note = order.note
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_a_raising_view_that_only_read_delivers(shop: Shop) -> None:
    def view() -> None:
        read_by_session(shop)
        shop.launch(1)
        raise RuntimeError("no")

    shop.visit(view, status=500)
    assert shop.sent() == [1]


def test_a_raising_view_that_wrote_drops_its_launch_loudly(shop: Shop, facts: Facts) -> None:
    def view() -> None:
        write_flushed(shop)
        shop.launch(1)
        raise RuntimeError("no")

    shop.visit(view, status=500)
    assert shop.sent() == []
    assert [said["envelope"].data for said in facts.of("discarded")] == [{"n": 1}]


@pytest.mark.parametrize("end", ["close", "remove"])
@pytest.mark.parametrize(
    ("write", "order"),
    [
        (write_unflushed, "write_first"),
        (write_flushed, "write_first"),
        (write_flushed, "launch_first"),
    ],
)
def test_a_session_ended_in_mid_request_drops_loudly_with_what_it_wrote(
    shop: Shop, losses: Losses, end: str, write: Callable[[Shop], None], order: str
) -> None:
    def view() -> None:
        if order == "launch_first":
            shop.launch(1)
        write(shop)
        if order == "write_first":
            shop.launch(1)
        getattr(shop.session, end)()
        assert losses() == [1]
        shop.launch(2)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([2], [1])


@pytest.mark.parametrize("end", ["close", "remove"])
def test_a_session_that_read_and_ended_in_mid_request_delivers(
    shop: Shop, losses: Losses, end: str
) -> None:
    def view() -> None:
        read_by_session(shop)
        shop.launch(1)
        getattr(shop.session, end)()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_what_a_later_transaction_loses_is_its_own(shop: Shop, losses: Losses) -> None:
    def view(end: Callable[[], None]) -> None:
        read_by_session(shop)
        shop.launch(1)
        shop.session.close()
        write_flushed(shop)
        shop.launch(2)
        end()

    shop.visit(lambda: view(shop.session.rollback))
    assert (shop.sent(), losses()) == ([1], [])
    shop.visit(lambda: view(lambda: None))
    assert (shop.sent(), losses()) == ([1, 1], [2])


# -- when -----------------------------------------------------------------------------------------


def test_a_body_that_commits_after_the_response_sends(shop: Shop, losses: Losses) -> None:
    def view() -> Any:
        shop.launch(1)

        def body() -> Iterator[str]:
            yield "a"
            shop.order(1)  # Flask has ended the view's session.
            shop.launch(2)
            shop.session.commit()
            yield "b"
            shop.launch(3)

        return stream_with_context(body())

    assert shop.visit(view) == b"ab"
    assert (shop.sent(), shop.orders(), losses()) == ([1, 2, 3], [1], [])


@pytest.mark.parametrize(
    ("where", "when", "how"),
    [
        *product(("after_request", "teardown_request"), ("before", "after"), ("commits", "reads")),
        ("teardown_appcontext", "after", "commits"),
        ("teardown_appcontext", "after", "reads"),
        ("teardown_appcontext", "before", "commits"),
        ("teardown_appcontext", "before", "reads"),
    ],
)
def test_functions_round_ours_may_launch(
    tmp_path: Path, action: str, losses: Losses, where: str, when: str, how: str
) -> None:
    visited: list[Shop] = []

    def launch(response: Any) -> Any:
        while visited:
            shop = visited.pop()
            if how == "commits":
                shop.order(1)
            shop.launch(1)
            if how == "commits":
                shop.session.commit()
        return response

    def register(app: Flask) -> None:
        getattr(app, where)(launch)

    url = f"sqlite:///{tmp_path}/app.db"
    shop = Shop(url, action, before=register if when == "before" else lambda app: None)
    if when == "after":
        register(shop.app)
    shop.visit(lambda: visited.append(shop))
    assert (shop.sent(), losses()) == ([1], [])
    shop.close()


# -- outside a request ----------------------------------------------------------------------------


def test_a_script_that_commits_sends(shop: Shop, losses: Losses) -> None:
    with shop.app.app_context():
        shop.order(1)
        shop.launch(1)
        assert shop.sent() == []
        shop.session.commit()
        assert shop.sent() == [1]
    assert (shop.sent(), losses()) == ([1], [])


def test_a_script_that_only_read_sends_at_its_end(shop: Shop, losses: Losses) -> None:
    with shop.app.app_context():
        read_by_session(shop)
        shop.launch(1)
    assert (shop.sent(), losses()) == ([1], [])


def test_a_script_that_forgets_its_commit_drops_loudly(shop: Shop, losses: Losses) -> None:
    with shop.app.app_context():
        write_flushed(shop)
        shop.launch(1)
    assert (shop.sent(), losses()) == ([], [1])


# -- unique keys ----------------------------------------------------------------------------------


class OnePerN(AsyncTask):
    """A task of which one for each number waits at a time."""

    def prepare_data(self, sender: Any, /, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    def unique_key(self, data: dict[str, Any]) -> str:
        return str(data["n"])


def unique(shop: Shop) -> type[AsyncTask]:
    members = {"action": f"unique_{shop.action}", "name": f"unique_{shop.action}"}
    return shop.hooks.register(type("Unique", (OnePerN,), members))


def test_a_unique_key_holds_within_a_transaction(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop
    ids: list[str] = []
    task = unique(shop)

    def view() -> None:
        shop.order(1)
        ids.append(task.dispatch({"n": 1}))
        ids.append(task.dispatch({"n": 1}))
        task.dispatch({"n": 2})
        shop.session.commit()

    shop.visit(view)
    assert ids[0] == ids[1]
    assert (shop.sent(), losses()) == ([1, 2], [])


def test_a_unique_key_holds_against_committed_rows(any_shop: Shop, losses: Losses) -> None:
    shop = any_shop
    ids: list[str] = []
    task = unique(shop)

    def view() -> None:
        shop.order(len(ids))
        ids.append(task.dispatch({"n": 1}))
        shop.session.commit()

    shop.visit(view)
    shop.visit(view)
    assert ids[0] == ids[1]
    assert (shop.sent(), losses()) == ([1], [])


def test_a_unique_key_of_what_was_rolled_back_is_free(shop: Shop) -> None:
    task = unique(shop)

    def view() -> None:
        shop.order(1)
        task.dispatch({"n": 1})
        shop.session.rollback()
        task.dispatch({"n": 1})

    shop.visit(view)
    assert shop.sent() == [1]


def test_a_unique_key_asked_for_while_the_session_writes_makes_no_deadlock(
    shop: Shop, losses: Losses
) -> None:
    task = unique(shop)  # No table is there yet.

    def view() -> None:
        write_flushed(shop)
        task.dispatch({"n": 1})
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([1], [2], [])


def test_a_unique_key_taken_after_the_transaction_began_breaks_no_commit(any_shop: Shop) -> None:
    shop = any_shop
    task = unique(shop)

    def dispatch() -> None:
        with shop.app.app_context():
            task.dispatch({"n": 1})

    def view() -> None:
        read_by_session(shop)
        task.dispatch({"n": 1})
        other = threading.Thread(target=dispatch)
        other.start()
        other.join()
        write_flushed(shop)
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders()) == ([1], [2])


# -- several apps, sessions and databases ---------------------------------------------------------


def test_two_apps_of_one_hooks_and_db_keep_to_their_own_databases(
    tmp_path: Path, action: str, losses: Losses
) -> None:
    db = SQLAlchemy()
    hooks = AsyncHooks(db=db)
    order = _model(db)
    task = make_task(hooks, action)
    apps = []
    for name in ("one", "two"):
        app = plain_app(
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/{name}.db",
            ASYNC_HOOKS_OUTBOX="app",
            ASYNC_HOOKS_RELAY=False,
        )
        db.init_app(app)
        hooks.init_app(app)
        apps.append(app)
    one, two = apps
    for app, n in ((one, 1), (two, 2), (one, 3)):
        with app.app_context():
            db.create_all()
            db.session.add(order(number=n))
            task.dispatch({"n": n})
            db.session.commit()
            task.dispatch({"n": 10 * n})
    with one.app_context():
        with two.app_context():
            task.dispatch({"n": 5})
            db.session.add(order(number=5))
        task.dispatch({"n": 4})
    found = []
    for app in apps:
        with app.app_context():
            found.append(sorted(each.data["n"] for each in hooks.outbox.find(limit=None)))
            db.engine.dispose()
    assert found == [[1, 3, 4, 10, 30], [2, 20]]
    assert losses() == [5]


def test_fifty_factories_add_no_second_row_and_no_statement(tmp_path: Path, action: str) -> None:
    db = SQLAlchemy()
    hooks = AsyncHooks(db=db)
    order = _model(db)
    task = make_task(hooks, action)
    statements: list[str] = []

    def note(*args: Any) -> None:
        statements.append(args[2])

    def create_app(number: int) -> Flask:
        app = plain_app(
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/{number}.db",
            ASYNC_HOOKS_OUTBOX="app",
            ASYNC_HOOKS_RELAY=False,
        )
        db.init_app(app)
        hooks.init_app(app)
        return app

    def commit(app: Flask) -> list[str]:
        with app.app_context():
            db.create_all()
            event.listen(db.engine, "after_cursor_execute", note)
            hooks.outbox.counts()
            statements.clear()
            db.session.add(order(number=1))
            task.dispatch({"n": 1})
            db.session.commit()
            made = list(statements)
            assert hooks.outbox.counts()["available"] == 1
            event.remove(db.engine, "after_cursor_execute", note)
            db.engine.dispose()
        return made

    apps = [create_app(number) for number in range(50)]
    assert commit(apps[-1]) == commit(apps[0])
    assert len(commit(apps[1])) == 2  # The order's row and the delivery's.


def plain_session(tmp_path: Path, action: str) -> tuple[Flask, AsyncHooks, Any, Any, Any]:
    """Set up an app with SQLAlchemy alone: its session is its thread's, and ends as is usual."""
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    session = scoped_session(sessionmaker(engine))
    base = declarative_base()

    class Order(base):  # type: ignore[misc,valid-type]
        __tablename__ = "orders"
        id = Column(Integer, primary_key=True)
        number = Column(Integer, unique=True)

    base.metadata.create_all(engine)
    app = plain_app(ASYNC_HOOKS_OUTBOX="app", ASYNC_HOOKS_RELAY=False, PROPAGATE_EXCEPTIONS=False)

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        session.remove()

    hooks = AsyncHooks(app, session=session)
    return app, hooks, session, Order, make_task(hooks, action)


@pytest.mark.parametrize(
    ("end", "sent", "lost"),
    [("commit", [1], []), ("rollback", [], []), ("forget", [], [1])],
)
def test_a_scoped_session_of_plain_sqlalchemy_is_joined(
    tmp_path: Path, action: str, losses: Losses, end: str, sent: list[int], lost: list[int]
) -> None:
    app, hooks, session, order_type, task = plain_session(tmp_path, action)

    def view() -> str:
        session.add(order_type(number=1))
        session.flush()
        task.dispatch({"n": 1})
        if end != "forget":
            getattr(session, end)()
        return ""

    app.add_url_rule("/", view_func=view)
    assert app.test_client().get("/").status_code == 200
    with app.app_context():
        assert [each.data["n"] for each in hooks.outbox.find()] == sent
    assert losses() == lost
    session.get_bind().dispose()


def test_a_scoped_session_that_only_read_delivers(
    tmp_path: Path, action: str, losses: Losses
) -> None:
    app, hooks, session, order_type, task = plain_session(tmp_path, action)

    def view() -> str:
        session.scalars(select(order_type)).all()
        task.dispatch({"n": 1})
        return ""

    app.add_url_rule("/", view_func=view)
    assert app.test_client().get("/").status_code == 200
    with app.app_context():
        assert hooks.outbox.counts()["available"] == 1
    assert losses() == []
    session.get_bind().dispose()


def test_a_look_at_the_outbox_leaves_a_thread_bound_session_alone(
    tmp_path: Path, action: str
) -> None:
    app, hooks, session, order_type, _ = plain_session(tmp_path, action)
    with app.app_context():
        order = order_type(number=1)
        session.add(order)
        hooks.outbox.counts()
        assert order in session
        session.commit()
        assert session.scalars(select(func.count()).select_from(order_type)).one() == 1
    session.get_bind().dispose()


def test_writes_to_a_second_bind_count(tmp_path: Path, action: str, losses: Losses) -> None:
    shop = Shop(
        f"sqlite:///{tmp_path}/app.db",
        action,
        SQLALCHEMY_BINDS={"other": f"sqlite:///{tmp_path}/other.db"},
    )

    class Visit(shop.db.Model):  # type: ignore[name-defined,misc]
        __bind_key__ = "other"
        id = Column(Integer, primary_key=True)

    with shop.app.app_context():
        shop.db.create_all()

    def view(end: Callable[[], None]) -> None:
        shop.session.add(Visit())
        shop.session.flush()
        shop.launch(1)
        end()

    shop.visit(lambda: view(shop.session.rollback))
    shop.visit(lambda: view(lambda: None))
    assert (shop.sent(), losses()) == ([], [1])
    shop.visit(lambda: view(shop.session.commit))
    assert (shop.sent(), losses()) == ([1], [1])
    shop.close()


# -- SQLite ---------------------------------------------------------------------------------------


def say_begin(engine: Engine) -> None:
    """Make SQLite's transactions begin when SQLAlchemy says, as its documentation advises."""

    @event.listens_for(engine, "connect")
    def let_us_say(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.fixture
def strict_shop(tmp_path: Path, action: str) -> Iterator[Shop]:
    """A shop whose SQLite has real transactions, for reading too, and little patience."""
    options = {"connect_args": {"timeout": 0.5}}
    shop = Shop(f"sqlite:///{tmp_path}/app.db", action, SQLALCHEMY_ENGINE_OPTIONS=options)
    with shop.app.app_context():
        shop.db.engine.dispose()
        say_begin(shop.db.engine)
    yield shop
    shop.close()


def test_an_engine_that_says_begin_commits_and_rolls_back(
    strict_shop: Shop, losses: Losses
) -> None:
    shop = strict_shop

    def view(end: Callable[[], None]) -> None:
        read_by_session(shop)
        shop.order(1)
        shop.launch(1)
        end()

    shop.visit(lambda: view(shop.session.rollback))
    shop.visit(lambda: view(lambda: None))
    assert (shop.sent(), losses()) == ([], [1])
    shop.visit(lambda: view(shop.session.commit))
    assert (shop.sent(), shop.orders(), losses()) == ([1], [1], [1])


def test_an_engine_that_says_begin_and_only_reads_delivers(
    strict_shop: Shop, losses: Losses
) -> None:
    shop = strict_shop
    shop.sent()  # As init-db does: the very first use wants a lock that this reader holds.

    def view() -> None:
        read_by_session(shop)
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_a_commit_that_only_read_gets_into_nobodys_way(strict_shop: Shop, losses: Losses) -> None:
    shop = strict_shop
    shop.sent()  # The tables are there, and readers may read while another writes.

    def view() -> None:
        read_by_session(shop)
        with closing(sqlite3.connect(shop.app.config["SQLALCHEMY_DATABASE_URI"][10:])) as other:
            other.execute("INSERT INTO orders (number) VALUES (9)")
            other.commit()
        shop.launch(1)
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


def test_the_journal_of_the_apps_file_lets_readers_read(shop: Shop) -> None:
    def journal() -> str:
        with shop.app.app_context(), shop.db.engine.connect() as connection:
            mode: str = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            return mode

    assert journal() == "delete"
    shop.visit(lambda: str(shop.launch(1)))
    assert journal() == "wal"


def test_tables_are_made_while_the_session_holds_the_lock(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        write_flushed(shop)
        shop.launch(1)
        shop.session.commit()

    shop.visit(view)
    with closing(sqlite3.connect(shop.app.config["SQLALCHEMY_DATABASE_URI"][10:])) as connection:
        found = connection.execute("SELECT state FROM async_hooks_deliveries").fetchall()
    assert (found, losses()) == ([("available",)], [])


def test_eight_threads_lose_and_double_nothing(tmp_path: Path, action: str) -> None:
    options = {"connect_args": {"timeout": 60}}
    shop = Shop(f"sqlite:///{tmp_path}/app.db", action, SQLALCHEMY_ENGINE_OPTIONS=options)
    with shop.app.app_context(), shop.db.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    failures: list[BaseException] = []

    def visit(thread: int) -> None:
        try:
            for number in range(50 * thread, 50 * thread + 50):
                with shop.app.app_context():
                    shop.order(number)
                    shop.launch(number)
                    shop.session.commit()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert shop.sent() == shop.orders() == list(range(400))
    shop.close()


# -- the relay ------------------------------------------------------------------------------------


def test_a_commit_wakes_the_relay_of_its_process(tmp_path: Path, action: str, facts: Facts) -> None:
    shop = Shop(f"sqlite:///{tmp_path}/app.db", action, ASYNC_HOOKS_RELAY=True)
    heard: list[int] = []
    shop.receive(lambda sender, *, n: heard.append(n))

    def view() -> None:
        shop.order(1)
        shop.launch(1)
        shop.session.commit()

    shop.visit(view)
    [said] = facts.wait_for("succeeded")
    assert (heard, said["envelope"].data) == ([1], {"n": 1})
    relay = state_of(shop.app).relay
    assert isinstance(relay, Relay)
    relay.stop()
    shop.close()


def test_no_relay_starts_in_tests(tmp_path: Path, action: str) -> None:
    shop = Shop(f"sqlite:///{tmp_path}/app.db", action, ASYNC_HOOKS_RELAY=True, TESTING=True)

    def view() -> None:
        shop.launch(1)
        shop.order(1)
        shop.session.commit()
        shop.launch(2)

    shop.visit(view)
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith(f"async_hooks-{shop.app.name}-claims") for name in names)
    assert shop.sent() == [1, 2]
    shop.close()


# -- exactly once ---------------------------------------------------------------------------------


def states(shop: Shop) -> list[tuple[DeliveryState, int]]:
    return [(each.state, each.attempts) for each in shop.deliveries()]


def launched(shop: Shop) -> Shop:
    with shop.app.app_context():
        shop.launch(1)
    return shop


def test_effects_left_to_us_are_committed_with_the_completion(any_shop: Shop) -> None:
    shop = launched(any_shop)
    shop.receive(lambda sender, *, n: shop.order(n))
    [verdict] = shop.work()
    assert (verdict.outcome, verdict.is_recorded) == (Outcome.COMPLETED, True)
    assert (shop.orders(), states(shop)) == ([1], [(DeliveryState.COMPLETED, 1)])


def test_a_receiver_that_raises_leaves_no_effects_and_is_retried(any_shop: Shop) -> None:
    shop = launched(any_shop)
    attempts: list[int] = []

    def receiver(sender: Any, *, n: int) -> None:
        attempts.append(n)
        shop.order(len(attempts))
        shop.session.flush()
        if len(attempts) == 1:
            raise RuntimeError("no")

    shop.receive(receiver)
    shop.work()
    assert (shop.orders(), states(shop)) == ([], [(DeliveryState.AVAILABLE, 1)])
    shop.work()
    assert (shop.orders(), states(shop)) == ([2], [(DeliveryState.COMPLETED, 2)])


def test_the_effects_of_a_stale_attempt_vanish(any_shop: Shop, losses: Losses) -> None:
    shop = launched(any_shop)

    def receiver(sender: Any, *, n: int) -> None:
        shop.steal()
        shop.order(n)
        shop.session.flush()
        shop.task.dispatch({"n": 2})

    shop.receive(receiver)
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.REPLAYED
    assert (shop.orders(), states(shop)) == ([], [(DeliveryState.EXECUTING, 1)])
    assert losses() == []


def test_a_commit_that_fails_is_a_failed_attempt(any_shop: Shop) -> None:
    shop = any_shop
    attempts: list[int] = []
    with shop.app.app_context():
        shop.order(1)
        shop.session.commit()
    launched(shop)

    def receiver(sender: Any, *, n: int) -> None:
        attempts.append(n)
        shop.order(len(attempts))  # The first is there already.
        shop.order(10 * len(attempts))

    shop.receive(receiver)
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.FAILED
    assert (shop.orders(), states(shop)) == ([1], [(DeliveryState.AVAILABLE, 1)])
    shop.work()
    assert (shop.orders(), states(shop)) == ([1, 2, 20], [(DeliveryState.COMPLETED, 2)])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_constraint_that_waits_for_the_commit_fails_the_attempt(
    tmp_path: Path, action: str, kind: str, losses: Losses
) -> None:
    with fresh_database(kind, tmp_path) as url:
        shop = Shop(url, action)

        class Item(shop.db.Model):  # type: ignore[name-defined,misc]
            id = Column(Integer, primary_key=True)
            order_id: Any = Column(ForeignKey("orders.id", deferrable=True, initially="DEFERRED"))

        with shop.app.app_context():
            shop.db.create_all()
            if kind == "sqlite":
                event.listen(
                    shop.db.engine,
                    "connect",
                    lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"),
                )
                shop.db.engine.dispose()
        launched(shop)

        def receiver(sender: Any, *, n: int) -> None:
            shop.session.add(Item(order_id=7))  # pyright: ignore
            shop.session.flush()
            shop.task.dispatch({"n": 2})

        shop.receive(receiver)
        [verdict] = shop.work()
        assert (verdict.outcome, "IntegrityError" in str(verdict.error)) == (Outcome.FAILED, True)
        assert states(shop) == [(DeliveryState.AVAILABLE, 1)]
        with shop.app.app_context():
            assert shop.session.scalars(select(Item)).all() == []
        shop.close()


def test_a_failure_of_the_apps_own_at_commit_drops_what_was_launched_quietly(shop: Shop) -> None:
    launched(shop)

    def receiver(sender: Any, *, n: int) -> None:
        write_flushed(shop)
        shop.task.dispatch({"n": 2})

        def refuse(session: Any) -> None:
            raise LookupError("not today")

        event.listen(shop.session(), "before_commit", refuse)

    shop.receive(receiver)
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.FAILED
    assert (shop.orders(), states(shop)) == ([], [(DeliveryState.AVAILABLE, 1)])


def test_a_receiver_that_commits_itself_completes(any_shop: Shop) -> None:
    shop = launched(any_shop)

    def receiver(sender: Any, *, n: int) -> None:
        shop.order(n)
        shop.session.commit()

    shop.receive(receiver)
    shop.work()
    assert (shop.orders(), states(shop)) == ([1], [(DeliveryState.COMPLETED, 1)])


def test_a_receiver_that_commits_itself_runs_at_least_once(any_shop: Shop) -> None:
    shop = launched(any_shop)
    attempts: list[int] = []

    def receiver(sender: Any, *, n: int) -> None:
        attempts.append(n)
        shop.order(len(attempts))
        shop.session.commit()
        if len(attempts) == 1:
            raise RuntimeError("no")

    shop.receive(receiver)
    shop.work()
    shop.work()
    assert (shop.orders(), states(shop)) == ([1, 2], [(DeliveryState.COMPLETED, 2)])


def test_a_database_that_is_busy_at_the_end_keeps_nothing_and_burns_no_attempt(
    tmp_path: Path, action: str
) -> None:
    options = {"connect_args": {"timeout": 0.05}}
    shop = Shop(f"sqlite:///{tmp_path}/app.db", action, SQLALCHEMY_ENGINE_OPTIONS=options)
    launched(shop)
    path = shop.app.config["SQLALCHEMY_DATABASE_URI"][10:]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:

        def receiver(sender: Any, *, n: int) -> None:
            shop.order(n)
            if shop.app.config.pop("BUSY"):
                other.execute("BEGIN IMMEDIATE")

        shop.receive(receiver)
        shop.app.config["BUSY"] = True
        [verdict] = shop.work(then=lambda: other.execute("ROLLBACK"))
        assert verdict.outcome is Outcome.UNWRITTEN
        assert (shop.orders(), states(shop)) == ([], [(DeliveryState.AVAILABLE, 0)])
        shop.app.config["BUSY"] = False
        with shop.app.app_context():
            assert shop.hooks.outbox.retry(shop.hooks.outbox.find()[0].id)
        shop.work()
    assert (shop.orders(), states(shop)) == ([1], [(DeliveryState.COMPLETED, 1)])
    shop.close()


def test_launches_made_inside_a_run_join_its_transaction(any_shop: Shop, losses: Losses) -> None:
    shop = launched(any_shop)

    def receiver(sender: Any, *, n: int) -> None:
        shop.order(n)
        shop.task.dispatch({"n": n + 1})
        assert shop.sent() == []

    shop.receive(receiver)
    shop.work()
    assert (shop.sent(), shop.orders(), losses()) == ([2], [1], [])


def test_launches_of_a_run_that_fails_with_its_effects_go_with_them(shop: Shop) -> None:
    launched(shop)

    def receiver(sender: Any, *, n: int) -> None:
        write_flushed(shop)
        shop.task.dispatch({"n": n + 1})
        raise RuntimeError("no")

    shop.receive(receiver)
    shop.work()
    assert (shop.sent(), shop.orders()) == ([1], [])


@pytest.mark.parametrize("stale", [False, True], ids=["held", "stale"])
def test_children_are_added_with_the_completion_of_their_parent(
    any_shop: Shop, stale: bool
) -> None:
    shop = launched(any_shop)
    for name in ("one", "two"):
        shop.receive(lambda sender, *, n: None, name=name)

    def run_action(self: AsyncTask, data: dict[str, Any]) -> None:
        if stale:
            shop.steal()
        shop.order(1)
        self.send(**data)

    shop.task.run_action = run_action  # type: ignore[method-assign]
    shop.work()
    found = [(each.receiver, each.state) for each in shop.deliveries() if each.parent_id]
    if stale:
        assert (found, shop.orders()) == ([], [])
    else:
        available = DeliveryState.AVAILABLE
        assert sorted(found, key=str) == [("one", available), ("two", available)]
        assert shop.orders() == [1]


def test_the_last_child_frees_the_unique_key_whatever_its_session_saw(any_shop: Shop) -> None:
    shop = any_shop
    task = unique(shop)
    verdicts: list[Verdict] = []

    def one(sender: Any, *, n: int) -> None:
        read_by_session(shop)  # From here on, MariaDB shows what was there before.
        other = threading.Thread(target=lambda: verdicts.append(shop.run(children["two"])))
        other.start()
        other.join()

    name = f"unique_{shop.action}"
    shop.hooks.receiver(name, name="one")(one)
    shop.hooks.receiver(name, name="two")(lambda sender, *, n: None)
    with shop.app.app_context():
        first = task.dispatch({"n": 1})
    shop.work()
    children = {envelope.receiver: envelope for envelope in shop.claim()}
    verdicts.append(shop.run(children["one"]))
    assert [verdict.is_recorded for verdict in verdicts] == [True, True]
    with shop.app.app_context():
        assert task.dispatch({"n": 1}) != first


def test_effects_through_a_plain_session_are_committed_with_the_completion(
    tmp_path: Path, action: str
) -> None:
    app, hooks, session, order_type, task = plain_session(tmp_path, action)
    hooks.receiver(action)(lambda sender, *, n: session.add(order_type(number=n)))
    with app.app_context():
        task.dispatch({"n": 1})
    ledger = state_of(app).ledger
    assert isinstance(ledger, Ledger)
    [envelope], _ = ledger.claim("a lease", kinds_of(state_of(app)), 1)
    assert InProcess(app).send(envelope).is_recorded
    assert session.scalars(select(order_type.number)).all() == [1]
    session.remove()
    session.get_bind().dispose()


def test_a_busy_error_is_told_from_others(shop: Shop) -> None:
    launched(shop)

    def receiver(sender: Any, *, n: int) -> None:
        raise OperationalError("x", None, sqlite3.OperationalError("database is locked"))

    shop.receive(receiver)
    [verdict] = shop.work()
    assert verdict.outcome is Outcome.FAILED  # It was the receiver's own.
