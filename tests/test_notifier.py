"""Who adds a delivery and does not relay wakes those who do."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_hooks.host.notifier import Notifier, notify_all
from async_hooks.host.runtime_dir import runtime_dir
from tests.support.waiting import wait_until


@pytest.fixture
def name() -> str:
    return f"notified {uuid.uuid4().hex}"


@pytest.fixture
def listening(name: str) -> Iterator[Callable[[], Notifier]]:
    """Makes notifiers of the same app."""
    notifiers: list[Notifier] = []

    def listen() -> Notifier:
        notifiers.append(Notifier())
        notifiers[-1].listen(name, str(len(notifiers)))
        return notifiers[-1]

    yield listen
    for notifier in notifiers:
        notifier.close()


def wakes(notifier: Notifier) -> threading.Thread:
    """Return a thread that ends when ``notifier`` is notified."""
    thread = threading.Thread(target=notifier.wait, args=(60,))
    thread.start()
    return thread


def test_another_process_wakes_everybody_who_waits(
    name: str, listening: Callable[[], Notifier]
) -> None:
    waiting = [wakes(listening()), wakes(listening())]
    notify_all(name)
    for thread in waiting:
        thread.join(20)
        assert not thread.is_alive()


def test_its_own_process_wakes_who_waits(listening: Callable[[], Notifier]) -> None:
    notifier = listening()
    waiting = wakes(notifier)
    wait_until(lambda: notifier._is_waited_for)
    notifier.notify()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_notification_while_nobody_waits_ends_the_next_wait(
    name: str, listening: Callable[[], Notifier]
) -> None:
    notifier = listening()
    for notify in (notifier.notify, lambda: notify_all(name)):
        for _ in range(100):  # More than there is room for.
            notify()
        waiting = wakes(notifier)
        waiting.join(20)
        assert not waiting.is_alive()
    waiting = wakes(notifier)  # And only that one.
    waiting.join(0.1)
    assert waiting.is_alive()
    notifier.notify()
    waiting.join(20)


def test_a_notifier_that_is_closed_leaves_nothing_and_can_be_notified(name: str) -> None:
    notifier = Notifier()
    notifier.listen(name, "one")
    notifier.close()
    notifier.notify()
    folder = runtime_dir(name)
    assert folder is not None
    assert list(folder.iterdir()) == []


def test_a_notification_that_nobody_hears_does_no_harm(name: str) -> None:
    folder = runtime_dir(name)
    assert folder is not None
    (folder / "dead.socket").touch()
    notify_all(name)
    notify_all(f"{name} without anybody")


def test_where_others_can_not_notify_its_own_process_can(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    listening: Callable[[], Notifier],
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("async_hooks.host.notifier.runtime_dir", lambda name: long)
    notifier = listening()
    notify_all(name)
    notifier.notify()
    waiting = wakes(notifier)
    waiting.join(20)
    assert not waiting.is_alive()
