"""A lifeline ends with its process, however that ends, and only those who can see it say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from async_hooks import lifeline
from async_hooks.in_hand import InHand
from async_hooks.lifeline import Lifeline
from async_hooks.processes import PerProcess
from async_hooks.shared_folder import shared_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock.")

NAME = "shop"

#: Holds a line, says its place, and waits to be told to end.
_HOLDER = """
import sys
from async_hooks.lifeline import Lifeline
line = Lifeline(sys.argv[1], sys.argv[2])
print(line.place, flush=True)
if sys.stdin.readline() == "end\\n":
    line.end()
"""


@pytest.fixture(autouse=True)
def _folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def observer() -> Iterator[Lifeline]:
    line = Lifeline(NAME, "observer")
    yield line
    line.end()


@contextmanager
def holder(relay_id: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Give another process that holds a line, and its place."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, NAME, relay_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def line_of(relay_id: str) -> Path:
    folder = shared_folder(NAME)
    assert folder is not None
    return lifeline.line_of(folder, relay_id)


def test_the_line_of_a_living_process_has_not_ended(observer: Lifeline) -> None:
    with holder("other") as (_, place):
        assert place == observer.place
        assert not observer.has_ended("other", place)
        assert not observer.has_ended("other", place)  # To ask does no harm.


def test_the_line_of_a_killed_process_has_ended(observer: Lifeline) -> None:
    with holder("other") as (process, place):
        process.kill()
        process.wait(30)
        assert observer.has_ended("other", place)
        assert observer.has_ended("other", place)  # Whoever asks takes nobody's sight.
        observer.forget("other")
        assert not line_of("other").exists()


def test_the_line_of_a_process_that_ends_in_order_is_gone(observer: Lifeline) -> None:
    with holder("other") as (process, place):
        process.communicate("end\n", timeout=30)
        assert process.returncode == 0
        assert not line_of("other").exists()
        assert not observer.has_ended("other", place)  # It has signed off; nobody asks.


def test_a_line_at_another_place_cannot_be_seen(observer: Lifeline) -> None:
    with holder("other") as (process, place):
        process.kill()
        process.wait(30)
        assert not observer.has_ended("other", "another place")
        assert not observer.has_ended("other", None)
        assert observer.has_ended("other", place)


def test_apps_of_other_names_are_at_other_places(observer: Lifeline) -> None:
    line = Lifeline("another shop", "other")
    assert line.place not in (None, observer.place)
    line.end()


def test_nobody_says_that_itself_has_ended(observer: Lifeline) -> None:
    assert not observer.has_ended("observer", observer.place)


def test_a_line_that_was_never_there_is_not_known_to_have_ended(observer: Lifeline) -> None:
    assert not observer.has_ended("nobody", observer.place)


def test_when_the_folder_has_vanished_nobody_is_known_to_have_ended(observer: Lifeline) -> None:
    with holder("other") as (process, place):
        shutil.rmtree(line_of("other").parent)
        assert not observer.has_ended("other", place)
        process.kill()
        process.wait(30)
        assert not observer.has_ended("other", place)


def test_a_folder_made_anew_is_another_place(observer: Lifeline) -> None:
    shutil.rmtree(line_of("observer").parent)
    line = Lifeline(NAME, "later")
    assert line.place not in (None, observer.place)
    assert not line.has_ended("observer", observer.place)
    line.end()


def test_without_a_folder_of_its_own_a_process_has_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "a file"
    nowhere.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere))
    line = Lifeline(NAME, "other")
    assert line.place is None
    assert not line.has_ended("another", None)
    line.end()


def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    home = tmp_path / f"async_hooks-{os.geteuid()}"
    home.mkdir()
    home.chmod(0o755)
    assert Lifeline(NAME, "other").place is None


def test_a_forked_childs_end_is_not_its_parents(observer: Lifeline) -> None:
    mine = Lifeline(NAME, "mine")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert not observer.has_ended("mine", mine.place)
    mine.end()


def test_a_forked_child_has_a_line_of_its_own(observer: Lifeline) -> None:
    me = PerProcess(lambda: InHand(NAME))
    mine = me.get()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = me.get()
        sees = theirs.lifeline.has_ended(mine.relay_id, mine.lifeline.place)
        os.write(writing, f"{theirs.relay_id} {sees}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    relay_id, seen = os.read(reading, 100).decode().split()
    os.close(reading)
    os.close(writing)
    assert relay_id != mine.relay_id
    assert seen == "False"
    assert observer.has_ended(relay_id, observer.place)
    assert not observer.has_ended(mine.relay_id, mine.lifeline.place)
    mine.lifeline.end()
