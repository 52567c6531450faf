"""An outbox of each kind, on its own connections and on the app's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.outboxes import Outbox, an_outbox
from tests.support.databases import KINDS


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
