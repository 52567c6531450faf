"""What the example promises of its database: a lead and its deliveries are one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy.exc import DBAPIError

from async_hooks import Delivery, DeliveryState
from example_site import create_app
from example_site.models import Lead, db
from example_site.tasks import hooks
from tests.acceptance.running_example import ADA

pytestmark = pytest.mark.slow


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    monkeypatch.setenv("INSTANCE_PATH", str(tmp_path))
    config = {"TESTING": True, "ASYNC_HOOKS_TESTING": "live", "WTF_CSRF_ENABLED": False}
    app = create_app(config)
    yield app
    with app.app_context():
        db.engine.dispose()


def test_lead_and_delivery_are_saved_together(app: Flask) -> None:
    answer = app.test_client().post("/", data=ADA)
    assert answer.status_code == 303
    assert [lead.name for lead in saved_leads(app)] == ["Ada Lovelace"]
    (delivery,) = saved_deliveries(app)
    assert delivery.ref == "lead-1"
    assert delivery.data == {"lead_id": 1}
    assert delivery.state is DeliveryState.AVAILABLE


def test_lead_whose_delivery_cannot_be_saved_is_not_saved(app: Flask) -> None:
    assert saved_deliveries(app) == []
    with app.app_context(), db.engine.begin() as connection:
        refusal = "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        trigger = f"CREATE TRIGGER full BEFORE INSERT ON async_hooks_deliveries {refusal}"
        connection.exec_driver_sql(trigger)
    with pytest.raises(DBAPIError, match="no room"):
        app.test_client().post("/", data=ADA)
    assert saved_leads(app) == []
    assert saved_deliveries(app) == []


def saved_leads(app: Flask) -> list[Lead]:
    with app.app_context():
        return list(db.session.scalars(db.select(Lead)))


def saved_deliveries(app: Flask) -> list[Delivery]:
    with app.app_context():
        return hooks.outbox.find()
