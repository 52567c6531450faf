"""The fixtures of all tests: actions that no other test has, and what listens to them."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from async_hooks import signals
from tests.support.facts import Facts

_numbers = itertools.count(1)

#: By file, the variants of slow tests that only ``.ci/long`` runs: the gate tries their likes.
_LONG = re.compile(
    r"test_matrix\.py.*\[gunicorn gthread, (preloaded|TLS|unix socket)\]"
    r"|test_silent_servers\.py.*\[app-.*mariadb"
    r"|test_deploys\.py.*\[mariadb\]"
    r"|test_deploys\.py.*(rename_under_load|is_renamed_under|rotate).*\[postgresql\]"
    r"|test_neighbours\.py.*\[(sqlite|mariadb)\]"
    r"|test_limits\.py.*\[mariadb\]"
    r"|test_groups\.py.*thousands.*\[(postgresql|mariadb)-app\]"
    r"|test_seams\.py.*finished_once.*\[(in-close|before-send)-(postgresql|mariadb)\]"
    r"|test_flask_migrate\.py.*\[ours first\]"
    r"|test_database\.py.*whole_wherever.*True\]"
    r"|test_rampage\.py.*random_killer.*\[(postgresql|mariadb|app)-"
    r"|test_killed_workers\.py.*random_killer.*\[(sqlite|mariadb|app)-"
    r"|test_outages\.py.*\[mariadb\]"
    r"|test_long_runs\.py.*killed_all.*\[(mariadb-app-web|sqlite-own-web)\]"
    r"|test_long_runs\.py.*never_overdue.*"
    r"\[(in_process-checkpoint|elsewhere-progress|worker-checkpoint|loopback-progress)\]"
    r"|test_overdue\.py.*\[(loopback-app|in_process-memory|in_process-app)\]"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes too long, unless ``LONG`` is set in the environment."""
    if "LONG" not in os.environ:
        long = [item for item in items if _LONG.search(item.nodeid)]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def action() -> str:
    """A signal name that no other test uses: signals are global."""
    return f"action_{next(_numbers)}"


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Ignore none of what ends a process: a shell's '&' and nohup do, and children inherit it."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture
def facts() -> Iterator[Facts]:
    """Everything that any app's lifecycle signals say during the test."""
    heard = Facts()
    connected = []
    for name in ("launched", "started", "succeeded", "failed", "retrying", "discarded", "rejected"):
        signal = getattr(signals, f"task_{name}")

        def listen(sender: Any, /, _name: str = name, **said: Any) -> None:
            heard.note(_name, said)

        signal.connect(listen, weak=False)
        connected.append((signal, listen))
    yield heard
    for signal, listen in connected:
        signal.disconnect(listen)
