"""Who adds and does not carry wakes those who do."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import wait_until

from async_hooks.bell import Bell, Ringer
from async_hooks.shared_folder import shared_folder


@pytest.fixture
def name() -> str:
    return f"bells {uuid.uuid4().hex}"


@pytest.fixture
def hung(name: str) -> Iterator[Callable[[], Bell]]:
    """Hangs bells of the same app."""
    bells: list[Bell] = []

    def hang() -> Bell:
        bells.append(Bell())
        bells[-1].hang(name, str(len(bells)))
        return bells[-1]

    yield hang
    for bell in bells:
        bell.close()


def wakes(bell: Bell) -> threading.Thread:
    """Return a thread that ends when ``bell`` is rung."""
    thread = threading.Thread(target=bell.wait, args=(60,))
    thread.start()
    return thread


def test_a_ring_of_another_process_wakes_everybody_who_waits(
    name: str, hung: Callable[[], Bell]
) -> None:
    waiting = [wakes(hung()), wakes(hung())]
    Ringer(name).ring()
    for thread in waiting:
        thread.join(20)
        assert not thread.is_alive()


def test_a_ring_of_its_own_process_wakes_who_waits(hung: Callable[[], Bell]) -> None:
    bell = hung()
    waiting = wakes(bell)
    wait_until(lambda: bell._is_waited_for)
    bell.ring()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_ring_while_nobody_waits_ends_the_next_wait(name: str, hung: Callable[[], Bell]) -> None:
    bell = hung()
    for ring in (bell.ring, Ringer(name).ring):
        for _ in range(100):  # More than there is room for.
            ring()
        waiting = wakes(bell)
        waiting.join(20)
        assert not waiting.is_alive()
    waiting = wakes(bell)  # And only that one.
    waiting.join(0.1)
    assert waiting.is_alive()
    bell.ring()
    waiting.join(20)


def test_a_bell_that_is_closed_leaves_nothing_and_can_be_rung(name: str) -> None:
    bell = Bell()
    bell.hang(name, "one")
    bell.close()
    bell.ring()
    folder = shared_folder(name)
    assert folder is not None
    assert list(folder.glob("bell-*")) == []


def test_a_ring_that_nobody_hears_does_no_harm(name: str) -> None:
    Ringer(name).ring()
    folder = shared_folder(name)
    assert folder is not None
    (folder / "bell-of-the-dead").touch()
    Ringer(name).ring()


def test_where_others_can_not_ring_its_own_process_can(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hung: Callable[[], Bell]
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("async_hooks.bell.shared_folder", lambda name: long)
    bell = hung()
    Ringer(name).ring()
    bell.ring()
    waiting = wakes(bell)
    waiting.join(20)
    assert not waiting.is_alive()
