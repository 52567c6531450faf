"""Connecting within a deadline: the app's own connections have their own limit afterwards."""

from __future__ import annotations

import time
from typing import Any

import pytest

from async_hooks.outbox.sql.deadlines import Deadlines, connect_within


class Dialect:
    """One of SQLAlchemy's dialects, of ``driver``; it keeps what it is to connect with."""

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.connected: dict[str, Any] = {}

    def connect(self, *_: Any, **options: Any) -> Dialect:
        self.connected = options
        return self


class Deferred(Dialect):
    """PyMySQL's connection as well, which is made later."""

    def connect(self, *args: Any, **options: Any) -> Dialect:
        return super().connect(**options) if options else self


@pytest.mark.parametrize(
    ("dialect", "given", "used"),
    [
        (Dialect("psycopg"), {"connect_timeout": 30}, 5),
        (Dialect("psycopg2"), {"connect_timeout": 3}, 3),
        (Dialect("mysqldb"), {}, 5),
        (Deferred("pymysql"), {"connect_timeout": 30}, 5),
    ],
)
def test_a_step_connects_within_its_deadline_and_leaves_the_apps_limit(
    dialect: Dialect, given: dict[str, Any], used: int
) -> None:
    deadlines, options = Deadlines(), dict(given)
    until = time.monotonic() + 5

    made = deadlines.run(until, lambda: connect_within(deadlines, dialect, None, [], options))

    assert made is dialect
    assert dialect.connected["connect_timeout"] == used
    assert options == given


def test_who_takes_no_step_connects_as_the_app_does() -> None:
    dialect = Dialect("psycopg")
    assert connect_within(Deadlines(), dialect, None, [], {"connect_timeout": 30}) is None
    assert dialect.connected == {}
