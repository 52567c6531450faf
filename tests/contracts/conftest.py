"""An outbox of each kind, on its own connections and on the app's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.joined import Runner
from tests.contracts.outboxes import Outbox, an_outbox
from tests.support.databases import KINDS, fresh_database


@pytest.fixture(scope="module", params=[True, False], ids=["own", "app"])
def is_own(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.fixture(scope="module", params=KINDS)
def tables(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, is_own: bool
) -> Iterator[Outbox]:
    folder = tmp_path_factory.mktemp(request.param)
    with an_outbox(request.param, folder, is_own=is_own) as made:
        yield made


@pytest.fixture
def outbox(tables: Outbox) -> Outbox:
    tables.clear()
    return tables


@pytest.fixture(scope="module", params=[*KINDS, "plain"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, bool]]:
    is_plain = request.param == "plain"
    folder = tmp_path_factory.mktemp("joined")
    with fresh_database("sqlite" if is_plain else request.param, folder) as url:
        yield url, is_plain


@pytest.fixture
def shop(database: tuple[str, bool], action: str) -> Iterator[Runner]:
    url, is_plain = database
    shop = Runner(url, action, is_plain=is_plain)
    assert shop.sent() == []  # SQLite's tables are made at the first use.
    yield shop
    shop.write("DELETE FROM async_hooks_deliveries", "DELETE FROM orders")
    shop.engine.dispose()
