"""The task of the app in ``late``, which needs that app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flask import current_app

from async_hooks import AsyncTask
from tests.servers.late import hooks

ledger = Path(current_app.extensions["ledger"])


@hooks.register
class Order(AsyncTask):
    action = "late_order"
    name = "late order"

    def run_action(self, data: dict[str, Any]) -> None:
        with ledger.open("a") as file:
            file.write(json.dumps({"done": data["number"]}) + "\n")
