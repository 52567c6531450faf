"""Ids sort in the order in which one process made them, and no two are alike."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

from async_hooks.envelope import Envelope, Ids, new_id

_FORK = multiprocessing.get_context("fork")


def test_an_id_begins_with_its_milliseconds() -> None:
    assert Ids(lambda: 1.5).next().startswith(f"{1500:012x}")
    assert len(new_id()) == 32
    int(new_id(), 16)


def test_ids_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id() for _ in range(10_000)]
    assert made == sorted(made)


def test_ids_go_on_while_the_clock_is_set_back() -> None:
    times = iter([100.0, 200.0, 50.0, 50.001, 200.0, 200.002])
    ids = Ids(lambda: next(times))
    made = [ids.next() for _ in range(6)]
    assert made == sorted(made)
    assert len(set(made)) == 6


def test_no_two_threads_make_the_same_id() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = [each for ids in threads.map(_thousand, range(8)) for each in ids]
    assert len(set(made)) == 8000


def test_no_two_processes_make_the_same_id() -> None:
    new_id()  # The parent's own are there before the fork.
    with _FORK.Pool(4) as processes:
        made = [each for ids in processes.map(_thousand, range(4)) for each in ids]
    assert len(set(made)) == 4000


def _thousand(_: int) -> list[str]:
    return [new_id() for _ in range(1000)]


def test_children_sort_beside_their_parent_and_are_the_same_each_time() -> None:
    early, late = made_at(1.0), made_at(2.0)
    children = [early.for_receiver(name) for name in ("one", "two")]
    assert [child.id for child in children] == [
        early.for_receiver(name).id for name in ("one", "two")
    ]
    assert len({early.id, *(child.id for child in children)}) == 3
    assert all(child.id < late.id for child in children)
    assert all(child.id[:12] == early.id[:12] for child in children)


def made_at(moment: float) -> Envelope:
    return Envelope(id=Ids(lambda: moment).next(), task="t", body="{}")


def test_a_child_waits_in_its_parents_queue_and_is_found_by_its_ref() -> None:
    parent = made_at(1.0)._replace(
        queue="mail", priority=3, ref="lead-7", unique_key="k", run_at=9.0
    )
    child = parent.for_receiver("one")
    assert (child.queue, child.priority, child.ref) == ("mail", 3, "lead-7")
    assert (child.unique_key, child.run_at, child.parent_id) == (None, None, parent.id)
