"""A pytest fixture for users' tests; pytest finds it by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from .recorder import Recorder, recording


@pytest.fixture
def async_hooks(app: Flask) -> Iterator[Recorder]:
    """What the test's ``app`` (a fixture of yours) launches: ``.envelopes`` and ``.run_all()``."""
    with recording(app) as recorder:
        yield recorder
