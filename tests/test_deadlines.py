"""Deadlines: the timer ends the connections of a step that takes too long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from async_hooks.outbox.sql.deadlines import Deadlines
from tests.support.waiting import BOUND


class Driver:
    """A driver's connection, to a server that says nothing."""

    def __init__(self, *, is_connected: bool = True) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.settimeout(BOUND)
        self.asked = threading.Event()
        self.is_connected = is_connected

    def fileno(self) -> int:
        self.asked.set()
        if not self.is_connected:
            raise OSError("It has no socket yet.")
        return self._ours.fileno()

    def wait(self) -> bytes:
        """Return what the server says, b"" once the connection has ended."""
        return self._ours.recv(10)

    def answer(self) -> bytes:
        """Let the server answer at last, and return that."""
        self._theirs.send(b"answer")
        return self.wait()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


def test_a_connection_ends_at_the_deadline_of_its_step(driver: Driver) -> None:
    deadlines = Deadlines()

    def step() -> bool:
        deadlines.add(driver)
        assert driver.wait() == b""
        return deadlines.remove(driver)

    assert deadlines.run(time.monotonic() + 0.05, step) is False


def test_a_step_that_is_done_in_time_keeps_its_connection(driver: Driver) -> None:
    deadlines = Deadlines()

    def step() -> bool:
        deadlines.add(driver)
        return deadlines.remove(driver)

    assert deadlines.run(time.monotonic() + 30, step) is True
    assert not driver.asked.is_set()
    assert driver.answer() == b"answer"


def test_a_connection_that_a_step_leaves_behind_is_nobodys_to_end(driver: Driver) -> None:
    deadlines = Deadlines()
    deadlines.run(time.monotonic(), lambda: deadlines.add(driver))
    assert not driver.asked.wait(0.4)


def test_what_has_no_socket_yet_ends_when_it_has_one(driver: Driver) -> None:
    deadlines = Deadlines()
    driver.is_connected = False

    def step() -> None:
        deadlines.add(driver)
        assert driver.asked.wait(BOUND)
        driver.is_connected = True
        assert driver.wait() == b""

    deadlines.run(time.monotonic(), step)


def test_a_step_within_another_has_its_own_deadline(driver: Driver) -> None:
    deadlines = Deadlines()

    def inner() -> None:
        deadlines.add(driver)
        assert driver.wait() == b""

    def outer() -> None:
        before = deadlines.left
        assert before is not None
        assert before > 10
        deadlines.run(time.monotonic(), inner)
        left = deadlines.left
        assert left is not None
        assert left > 10

    deadlines.run(time.monotonic() + 30, outer)
    assert deadlines.left is None


def test_without_a_step_nobody_watches(driver: Driver) -> None:
    deadlines = Deadlines()
    deadlines.add(driver)
    assert deadlines.remove(driver)
