"""The example: a lead form whose three partners are called after the thank-you page.

Read ``tasks.py`` first: everything that async_hooks does for this site stands there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from flask import Flask
from flask_wtf import CSRFProtect

from . import labels, models, views
from .tasks import hooks

#: Each is also read from the environment, where its name begins with ``EXAMPLE_``.
DEFAULTS = {
    "PARTNERS_URL": "http://127.0.0.1:8001",
    # How long a partner may take to answer.
    "CALL_SECONDS": 10,
    # A lead and its deliveries are one transaction. They are kept alike: pages show both.
    "ASYNC_HOOKS_OUTBOX": "app",
    "ASYNC_HOOKS_KEEP": timedelta(days=3650),
    # Of the eight threads of each server process, four stay free for visitors.
    "ASYNC_HOOKS_CONCURRENCY": 4,
    "SQLALCHEMY_DATABASE_URI": "sqlite:///site.db",
    "SESSION_COOKIE_NAME": "example_site",
    "SESSION_COOKIE_SAMESITE": "Lax",
    # A form stays valid as long as the session does.
    "WTF_CSRF_TIME_LIMIT": None,
    "MAX_CONTENT_LENGTH": 64 * 1024,
}


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Return the site. It keeps its database and its key in ``INSTANCE_PATH``."""
    folder = Path(os.environ.get("INSTANCE_PATH") or Path(__file__).parent / "instance").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    app = Flask(__name__, instance_path=str(folder))
    app.config.from_mapping(DEFAULTS)
    app.config.from_prefixed_env("EXAMPLE")
    app.config["SECRET_KEY"] = os.environ.get("SECRET_KEY") or _secret_key(folder)
    app.config.update(config or {})

    models.init_app(app)
    hooks.init_app(app)
    CSRFProtect(app)
    labels.init_app(app)
    views.init_app(app)
    return app


def _secret_key(folder: Path) -> str:
    """Return the key that lies in ``folder``; the first time, make one only its owner may read."""
    path = folder / "secret_key"
    try:
        with open(path, "x", opener=partial(os.open, mode=0o600)) as file:
            file.write(token_hex(32))
    except FileExistsError:
        pass
    return path.read_text()
