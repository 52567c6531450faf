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

from async_hooks.host import liveness
from async_hooks.host.liveness import ProcessLock
from async_hooks.host.per_process import PerProcess
from async_hooks.host.runtime_dir import runtime_dir
from async_hooks.relay.process import InHand

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock.")

NAME = "shop"

#: Holds a line, says its place, and waits to be told to end.
_HOLDER = """
import sys
from async_hooks.host.liveness import ProcessLock
line = ProcessLock(sys.argv[1], sys.argv[2])
print(line.host_id, flush=True)
if sys.stdin.readline() == "end\\n":
    line.end()
"""


@pytest.fixture(autouse=True)
def _folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def observer() -> Iterator[ProcessLock]:
    line = ProcessLock(NAME, "observer")
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


def path_of(relay_id: str) -> Path:
    folder = runtime_dir(NAME)
    assert folder is not None
    return liveness.path_of(folder, relay_id)


def test_the_line_of_a_living_process_has_not_ended(observer: ProcessLock) -> None:
    with holder("other") as (_, host_id):
        assert host_id == observer.host_id
        assert not observer.has_ended("other", host_id)
        assert not observer.has_ended("other", host_id)  # To ask does no harm.


def test_the_line_of_a_killed_process_has_ended(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        process.kill()
        process.wait(30)
        assert observer.has_ended("other", host_id)
        assert observer.has_ended("other", host_id)  # Whoever asks takes nobody's sight.
        observer.forget("other")
        assert not path_of("other").exists()


def test_the_line_of_a_process_that_ends_in_order_is_gone(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        process.communicate("end\n", timeout=30)
        assert process.returncode == 0
        assert not path_of("other").exists()
        assert not observer.has_ended("other", host_id)  # It has signed off; nobody asks.


def test_a_line_at_another_place_cannot_be_seen(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        process.kill()
        process.wait(30)
        assert not observer.has_ended("other", "another place")
        assert not observer.has_ended("other", None)
        assert observer.has_ended("other", host_id)


def test_apps_of_other_names_are_at_other_places(observer: ProcessLock) -> None:
    line = ProcessLock("another shop", "other")
    assert line.host_id not in (None, observer.host_id)
    line.end()


def test_nobody_says_that_itself_has_ended(observer: ProcessLock) -> None:
    assert not observer.has_ended("observer", observer.host_id)


def test_a_line_that_was_never_there_is_not_known_to_have_ended(observer: ProcessLock) -> None:
    assert not observer.has_ended("nobody", observer.host_id)


def test_when_the_folder_has_vanished_nobody_is_known_to_have_ended(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        shutil.rmtree(path_of("other").parent)
        assert not observer.has_ended("other", host_id)
        process.kill()
        process.wait(30)
        assert not observer.has_ended("other", host_id)


def test_a_folder_made_anew_is_another_place(observer: ProcessLock) -> None:
    shutil.rmtree(path_of("observer").parent)
    line = ProcessLock(NAME, "later")
    assert line.host_id not in (None, observer.host_id)
    assert not line.has_ended("observer", observer.host_id)
    line.end()


def test_without_a_folder_of_its_own_a_process_has_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "a file"
    nowhere.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere))
    line = ProcessLock(NAME, "other")
    assert line.host_id is None
    assert not line.has_ended("another", None)
    line.end()


def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    home = tmp_path / f"async_hooks-{os.geteuid()}"
    home.mkdir()
    home.chmod(0o755)
    assert ProcessLock(NAME, "other").host_id is None


def test_a_forked_childs_end_is_not_its_parents(observer: ProcessLock) -> None:
    mine = ProcessLock(NAME, "mine")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert not observer.has_ended("mine", mine.host_id)
    mine.end()


def test_a_forked_child_has_a_line_of_its_own(observer: ProcessLock) -> None:
    me = PerProcess(lambda: InHand(NAME))
    mine = me.get()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = me.get()
        sees = theirs.liveness.has_ended(mine.relay_id, mine.liveness.host_id)
        os.write(writing, f"{theirs.relay_id} {sees}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    relay_id, seen = os.read(reading, 100).decode().split()
    os.close(reading)
    os.close(writing)
    assert relay_id != mine.relay_id
    assert seen == "False"
    assert observer.has_ended(relay_id, observer.host_id)
    assert not observer.has_ended(mine.relay_id, mine.liveness.host_id)
    mine.liveness.end()
