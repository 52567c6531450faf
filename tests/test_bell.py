"""Who adds and does not carry wakes those who do."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from async_hooks.bell import Bell, Ringer
from async_hooks.shared_folder import shared_folder


@pytest.fixture
def name() -> str:
    return f"bells {uuid.uuid4().hex}"


def test_a_ring_wakes_everybody_who_listens(name: str) -> None:
    woken = [threading.Event(), threading.Event()]
    bells = [Bell(name, str(number), event.set) for number, event in enumerate(woken)]
    Ringer(name).ring()
    assert all(event.wait(20) for event in woken)
    for bell in bells:
        bell.close()


def test_a_bell_that_is_closed_leaves_nothing(name: str) -> None:
    Bell(name, "one", lambda: None).close()
    folder = shared_folder(name)
    assert folder is not None
    assert list(folder.glob("bell-*")) == []


def test_a_ring_that_nobody_hears_does_no_harm(name: str) -> None:
    Ringer(name).ring()
    folder = shared_folder(name)
    assert folder is not None
    (folder / "bell-of-the-dead").touch()
    Ringer(name).ring()


def test_where_there_can_be_no_bell_the_relay_only_looks(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("async_hooks.bell.shared_folder", lambda name: long)
    Bell(name, "one", lambda: None).close()
    Ringer(name).ring()
