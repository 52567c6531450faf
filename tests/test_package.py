"""What holds for the package as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import async_hooks

PINNED = {
    "AsyncHooks",
    "AsyncHooksError",
    "AsyncTask",
    "Auth",
    "ConfigError",
    "DataError",
    "DepthExceeded",
    "Discard",
    "NoAppContext",
    "OutboxRequired",
    "Retry",
    "SkipTask",
    "TokenError",
    "TokenExpired",
    "TokenReplayed",
    "async_signal",
    "current_envelope",
}


def test_the_public_names_are_there() -> None:
    assert set(dir(async_hooks)) >= PINNED


def test_it_is_typed() -> None:
    assert (Path(async_hooks.__file__).parent / "py.typed").exists()


def test_importing_it_needs_the_four_packages_only() -> None:
    """Flask's own requirements and requests' come with them; no extra is imported."""
    code = (
        "import sys; import async_hooks; "
        "print(*{name.partition('.')[0] for name in sys.modules} & "
        "{'flask_login', 'flask_wtf', 'sqlalchemy', 'celery', 'asgiref', 'pytest'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
