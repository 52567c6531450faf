"""Calls at their time, from one thread for each process."""

from __future__ import annotations

import multiprocessing
import threading
import time
from functools import partial
from typing import Any

from async_hooks.host.timer import call_later, cancel
from tests.support.waiting import wait_until


def test_calls_are_made_in_the_order_of_their_time_whatever_the_order_of_asking() -> None:
    made: list[int] = []
    for delay in (0.2, 0.05, 0.1, 0.3, 0.0):
        call_later(delay, partial(made.append, round(delay * 100)))
    wait_until(lambda: len(made) == 5, "the calls")
    assert made == [0, 5, 10, 20, 30]


def test_a_call_is_not_made_before_its_time() -> None:
    made = threading.Event()
    began = time.monotonic()
    call_later(0.2, made.set)
    assert made.wait(10)
    assert time.monotonic() - began >= 0.2


def test_a_cancelled_call_is_not_made() -> None:
    made: list[str] = []
    cancel(call_later(0.05, lambda: made.append("cancelled")))
    call_later(0.1, lambda: made.append("other"))
    wait_until(lambda: made, "the other call")
    assert made == ["other"]


def test_a_call_that_fails_is_logged_and_the_others_are_made(caplog: Any) -> None:
    made = threading.Event()
    call_later(0.0, lambda: 1 / 0)
    call_later(0.05, made.set)
    assert made.wait(10)
    assert "A call of the timer failed." in caplog.text


def test_a_call_that_is_never_due_wakes_nobody() -> None:
    cancel(call_later(float("inf"), lambda: 1 / 0))


def test_many_threads_may_ask_at_once() -> None:
    made: list[int] = []

    def ask() -> None:
        for number in range(200):
            call = call_later(0.01, lambda: made.append(1))
            if number % 2:
                cancel(call)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(made) >= 800, "the calls")
    time.sleep(0.05)
    assert 800 <= len(made) <= 1600  # One may be made in the moment it is cancelled.


def _in_child(pipe: Any) -> None:
    made = threading.Event()
    call_later(0.01, made.set)
    pipe.send(made.wait(10))


def test_a_forked_child_has_a_timer_of_its_own() -> None:
    call_later(0.01, lambda: None)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=[theirs])
    child.start()
    assert ours.poll(20)
    assert ours.recv()
    child.join()
