"""The fixtures of all tests: actions that no other test has, and what listens to them."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from async_hooks import signals
from tests.support.facts import Facts

_numbers = itertools.count(1)


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
