"""Flask-SeaSurf wants a token of each form: a run proves more than that."""

from __future__ import annotations

import pytest

from async_hooks import AsyncHooks
from tests.support.apps import make_task, plain_app
from tests.support.facts import Facts
from tests.support.services import require_module

require_module("flask_seasurf")

from flask_seasurf import SeaSurf


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_run_needs_no_token_and_no_referer(action: str, scheme: str, facts: Facts) -> None:
    app = plain_app(ASYNC_HOOKS_TRANSPORT="eager")
    task = make_task(AsyncHooks(app), action, run_action=lambda task, data: None)
    SeaSurf(app)
    app.add_url_rule("/", "page", lambda: task.dispatch({}))
    app.add_url_rule("/form", "form", lambda: "", methods=["POST"])
    client = app.test_client()
    assert client.get("/", base_url=f"{scheme}://localhost").status_code == 200
    assert len(facts.of("succeeded")) == 1
    assert client.post("/form").status_code == 403
