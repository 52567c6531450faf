"""The outbox "app", as far as the machine in contracts/test_joined_transactions.py can't tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, stream_with_context
from sqlalchemy import Column, Integer, event
from sqlalchemy.exc import IntegrityError

from async_hooks.state import state_of
from tests.support.facts import Facts
from tests.support.joined_shop import CHANGES, INSERTS, READS, Shop, in_threads, losses_heard

MakeShop = Callable[..., Shop]
Losses = Callable[[], list[int]]


@pytest.fixture
def make_shop(tmp_path: Path, action: str) -> Iterator[MakeShop]:
    """Make a shop on SQLite."""
    made: list[Shop] = []

    def make(name: str = "app", **options: Any) -> Shop:
        made.append(Shop(f"sqlite:///{tmp_path}/{name}.db", action, **options))
        return made[-1]

    yield make
    for shop in made:
        shop.engine.dispose()


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    return make_shop()


@pytest.fixture
def losses() -> Iterator[Losses]:
    with losses_heard() as losses:
        yield losses


# -- what counts as written -----------------------------------------------------------------------


@pytest.mark.parametrize("way", [*INSERTS, *CHANGES])
def test_each_way_to_write_is_missed_from_an_engines_first_transaction_on(
    make_shop: MakeShop, losses: Losses, way: str
) -> None:
    make_shop().write("INSERT INTO orders (number) VALUES (1)")
    shop = make_shop()  # Its tables are there.
    write, n = (INSERTS[way], 2) if way in INSERTS else (CHANGES[way], 1)
    shop.visit(lambda: (shop.launch(1), write(shop, n)))
    assert (shop.sent(), shop.orders(), losses()) == ([], [1], [1])


@pytest.mark.parametrize("way", READS)
def test_no_way_to_read_wants_a_commit(shop: Shop, losses: Losses, way: str) -> None:
    shop.write("INSERT INTO orders (number) VALUES (0)")
    shop.visit(lambda: (READS[way](shop), shop.launch(1), READS[way](shop)))
    assert (shop.sent(), losses()) == ([1], [])


def test_what_savepoints_wrote_and_undid_wants_no_commit(shop: Shop, losses: Losses) -> None:
    def view() -> None:
        outer = shop.session.begin_nested()
        with shop.session.begin_nested():
            shop.order(1)
        outer.rollback()
        shop.launch(1)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([1], [])


@pytest.mark.parametrize("end", ["close", "remove"])
def test_what_is_written_and_not_flushed_is_missed_in_mid_request(
    shop: Shop, losses: Losses, end: str
) -> None:
    def view() -> None:
        shop.order(1)
        shop.launch(1)
        getattr(shop.session, end)()
        assert losses() == [1]
        shop.launch(2)

    shop.visit(view)
    assert (shop.sent(), losses()) == ([2], [1])


def test_writes_to_a_second_bind_count(make_shop: MakeShop, losses: Losses, tmp_path: Path) -> None:
    shop = make_shop(SQLALCHEMY_BINDS={"other": f"sqlite:///{tmp_path}/other.db"})

    class Visit(shop.db.Model):  # type: ignore[name-defined,misc]
        __bind_key__ = "other"
        id = Column(Integer, primary_key=True)

    with shop.app.app_context():
        shop.db.create_all()

    def view(n: int, end: str) -> None:
        shop.session.add(Visit())
        shop.session.flush()
        shop.launch(n)
        getattr(shop.session, end)()

    for n, end in enumerate(("flush", "rollback", "commit")):
        shop.visit(partial(view, n, end))
    assert (shop.sent(), losses()) == ([2], [0])
    with shop.app.app_context():
        shop.db.engines["other"].dispose()


# -- when -----------------------------------------------------------------------------------------


def launch_by_flush(shop: Shop) -> None:
    def launch(mapper: Any, connection: Any, order: Any) -> None:
        shop.launch(order.number)

    event.listen(shop.Order, "after_insert", launch)


def test_launches_are_inserted_with_the_root_commit_and_not_before(shop: Shop) -> None:
    assert shop.sent() == []  # The tables are there.
    said: list[str] = []
    shop.engine.dispose()
    event.listen(shop.engine, "connect", lambda made, _: made.set_trace_callback(said.append))
    launch_by_flush(shop)

    def view() -> None:
        with shop.session.begin_nested():
            shop.order(1)
        assert not any("async_hooks_deliveries" in each for each in said)
        shop.order(2)
        shop.session.commit()

    shop.visit(view)
    assert "INSERT INTO async_hooks_deliveries" in said[-2]
    assert said.index("COMMIT") == len(said) - 1
    assert shop.sent() == [1, 2]


def test_what_a_flush_launched_goes_with_what_it_wrote(shop: Shop) -> None:
    launch_by_flush(shop)
    shop.write("INSERT INTO orders (number) VALUES (0)")

    def view() -> None:
        shop.order(1)
        shop.order(0)
        with pytest.raises(IntegrityError):
            shop.session.commit()
        shop.session.rollback()
        shop.order(2)
        shop.session.flush()
        shop.session.rollback()

    shop.visit(view)
    assert shop.sent() == []


def test_a_body_that_commits_after_the_response_sends(shop: Shop, losses: Losses) -> None:
    def body() -> Iterator[str]:
        yield "a"
        shop.order(1)  # Flask has ended the view's session.
        shop.launch(2)
        shop.session.commit()
        yield "b"
        shop.launch(3)

    assert shop.visit(lambda: (shop.launch(1), stream_with_context(body()))[1]) == b"ab"
    assert (shop.sent(), shop.orders(), losses()) == ([1, 2, 3], [1], [])


@pytest.mark.parametrize("where", ["after_request", "teardown_request", "teardown_appcontext"])
@pytest.mark.parametrize("is_before", [False, True])
@pytest.mark.parametrize("commits", [False, True])
def test_functions_round_ours_may_launch(
    make_shop: MakeShop, losses: Losses, where: str, is_before: bool, commits: bool
) -> None:
    visited: list[Shop] = []

    def launch(response: Any) -> Any:
        while visited:
            shop = visited.pop()
            if commits:
                shop.order(1)
            shop.launch(1)
            if commits:
                shop.session.commit()
        return response

    def register(app: Flask) -> None:
        getattr(app, where)(launch)

    shop = make_shop(before=register) if is_before else make_shop()
    if not is_before:
        register(shop.app)
    shop.visit(lambda: visited.append(shop))
    assert (shop.sent(), losses()) == ([1], [])


def test_what_is_launched_at_the_very_end_waits_as_a_whole(make_shop: MakeShop) -> None:
    visited: list[Shop] = []

    def launch(error: Any) -> None:
        while visited:
            visited.pop().launch(1)

    def register(app: Flask) -> None:  # Ours comes before: the last one comes first.
        app.teardown_appcontext(launch)

    shop = make_shop(before=register)
    for name in ("one", "two"):
        shop.hooks.receiver(shop.action, name=name)(lambda sender, **data: None)
    shop.visit(lambda: visited.append(shop))
    found = {each.receiver: str(each.state) for each in shop.deliveries()}
    assert found == {None: "waiting", "one": "available", "two": "available"}


def commit(shop: Shop, n: int) -> None:
    shop.order(n)
    shop.launch(n)
    shop.session.commit()


def test_a_commit_wakes_the_relay_of_its_process(make_shop: MakeShop, facts: Facts) -> None:
    shop = make_shop(ASYNC_HOOKS_RELAY=True)
    shop.visit(lambda: commit(shop, 1))
    assert [said["envelope"].data for said in facts.wait_for("succeeded")] == [{"n": 1}]
    relay: Any = state_of(shop.app).relay
    relay.stop()


# -- several apps on one session ------------------------------------------------------------------


def test_two_apps_of_one_session_keep_to_their_own_databases(
    make_shop: MakeShop, losses: Losses
) -> None:
    one = make_shop("one")
    two = make_shop("two", of=one)
    for shop, n in ((one, 1), (two, 2), (one, 3)):
        with shop.app.app_context():
            commit(shop, n)
            shop.launch(10 * n)
    with one.app.app_context():
        with two.app.app_context():
            two.launch(5)
            two.order(5)
        one.launch(4)
    assert (one.sent(), two.sent(), losses()) == ([1, 3, 4, 10, 30], [2, 20], [5])


def test_fifty_apps_of_one_session_add_no_second_row_and_no_statement(make_shop: MakeShop) -> None:
    shops = [make_shop()]
    shops += [make_shop(number, of=shops[0]) for number in range(49)]
    for shop in (shops[0], shops[1], shops[-1]):
        assert shop.sent() == []
        statements: list[str] = []
        with shop.app.app_context():
            driver: Any = shop.session.connection().connection.driver_connection
            driver.set_trace_callback(statements.append)
            commit(shop, 1)
            driver.set_trace_callback(None)
        tables = [said.split()[2] for said in statements if said.startswith("INSERT")]
        assert tables == ["orders", "async_hooks_deliveries"]
        assert shop.sent() == [1]


# -- SQLite ---------------------------------------------------------------------------------------


def test_a_commit_that_only_read_gets_into_nobodys_way(make_shop: MakeShop, losses: Losses) -> None:
    shop = make_shop(says_begin=True)
    assert shop.sent() == []  # The tables are there; readers may read while another writes.

    def view() -> None:
        READS["query"](shop)
        in_threads(lambda: shop.write("INSERT INTO orders (number) VALUES (9)"))
        shop.launch(1)
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders(), losses()) == ([1], [9], [])


def test_the_journal_of_the_apps_file_lets_readers_read(shop: Shop) -> None:
    def journal() -> str:
        with shop.engine.connect() as connection:
            return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())

    assert journal() == "delete"
    shop.visit(lambda: shop.launch(1))
    assert journal() == "wal"


@pytest.mark.parametrize("unique_key", [None, "key"])
def test_tables_are_made_while_the_session_holds_the_lock(
    shop: Shop, unique_key: str | None
) -> None:
    def view() -> None:
        INSERTS["text"](shop, 1)
        shop.task.dispatch({"n": 1}, unique_key=unique_key)
        shop.session.commit()

    shop.visit(view)
    assert (shop.sent(), shop.orders()) == ([1], [1])


def test_eight_threads_lose_and_double_nothing(make_shop: MakeShop) -> None:
    shop = make_shop(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 60}})
    assert shop.sent() == []  # The tables are there.

    def visit(numbers: range) -> None:
        for number in numbers:
            with shop.app.app_context():
                commit(shop, number)

    in_threads(*(partial(visit, range(n, n + 50)) for n in range(0, 400, 50)))
    assert shop.sent() == shop.orders() == list(range(400))
