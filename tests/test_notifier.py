"""Who adds and does not carry wakes those who do."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_hooks.host.notifier import Notifier, Ringer
from async_hooks.host.runtime_dir import runtime_dir
from tests.support.waiting import wait_until


@pytest.fixture
def name() -> str:
    return f"bells {uuid.uuid4().hex}"


@pytest.fixture
def hung(name: str) -> Iterator[Callable[[], Notifier]]:
    """Hangs bells of the same app."""
    bells: list[Notifier] = []

    def hang() -> Notifier:
        bells.append(Notifier())
        bells[-1].hang(name, str(len(bells)))
        return bells[-1]

    yield hang
    for notifier in bells:
        notifier.close()


def wakes(notifier: Notifier) -> threading.Thread:
    """Return a thread that ends when ``bell`` is rung."""
    thread = threading.Thread(target=notifier.wait, args=(60,))
    thread.start()
    return thread


def test_a_ring_of_another_process_wakes_everybody_who_waits(
    name: str, hung: Callable[[], Notifier]
) -> None:
    waiting = [wakes(hung()), wakes(hung())]
    Ringer(name).ring()
    for thread in waiting:
        thread.join(20)
        assert not thread.is_alive()


def test_a_ring_of_its_own_process_wakes_who_waits(hung: Callable[[], Notifier]) -> None:
    notifier = hung()
    waiting = wakes(notifier)
    wait_until(lambda: notifier._is_waited_for)
    notifier.ring()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_ring_while_nobody_waits_ends_the_next_wait(
    name: str, hung: Callable[[], Notifier]
) -> None:
    notifier = hung()
    for ring in (notifier.ring, Ringer(name).ring):
        for _ in range(100):  # More than there is room for.
            ring()
        waiting = wakes(notifier)
        waiting.join(20)
        assert not waiting.is_alive()
    waiting = wakes(notifier)  # And only that one.
    waiting.join(0.1)
    assert waiting.is_alive()
    notifier.ring()
    waiting.join(20)


def test_a_bell_that_is_closed_leaves_nothing_and_can_be_rung(name: str) -> None:
    notifier = Notifier()
    notifier.hang(name, "one")
    notifier.close()
    notifier.ring()
    folder = runtime_dir(name)
    assert folder is not None
    assert list(folder.glob("bell-*")) == []


def test_a_ring_that_nobody_hears_does_no_harm(name: str) -> None:
    Ringer(name).ring()
    folder = runtime_dir(name)
    assert folder is not None
    (folder / "bell-of-the-dead").touch()
    Ringer(name).ring()


def test_where_others_can_not_ring_its_own_process_can(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hung: Callable[[], Notifier]
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("async_hooks.host.notifier.runtime_dir", lambda name: long)
    notifier = hung()
    Ringer(name).ring()
    notifier.ring()
    waiting = wakes(notifier)
    waiting.join(20)
    assert not waiting.is_alive()
