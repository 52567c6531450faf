"""A lock ends with its process, however that ends, and only those who can see it say so."""

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
from async_hooks.relay.process import Process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock.")

NAME = "shop"

#: Holds a lock, says its host, and waits to be told to end.
_HOLDER = """
import sys
from async_hooks.host.liveness import ProcessLock
lock = ProcessLock(sys.argv[1], sys.argv[2])
print(lock.host_id, flush=True)
if sys.stdin.readline() == "end\\n":
    lock.end()
"""


@pytest.fixture(autouse=True)
def _folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def observer() -> Iterator[ProcessLock]:
    lock = ProcessLock(NAME, "observer")
    yield lock
    lock.end()


@contextmanager
def holder(process_id: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Give another process that holds a lock, and its host."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, NAME, process_id],
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


def path_of(process_id: str) -> Path:
    folder = runtime_dir(NAME)
    assert folder is not None
    return liveness.path_of(folder, process_id)


def test_the_lock_of_a_living_process_has_not_ended(observer: ProcessLock) -> None:
    with holder("other") as (_, host_id):
        assert host_id == observer.host_id
        assert not observer.has_ended("other", host_id)
        assert not observer.has_ended("other", host_id)  # To ask does no harm.


def test_the_lock_of_a_killed_process_has_ended(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        process.kill()
        process.wait(30)
        assert observer.has_ended("other", host_id)
        assert observer.has_ended("other", host_id)  # Whoever asks takes nobody's sight.
        observer.forget("other")
        assert not path_of("other").exists()


def test_the_lock_of_a_process_that_ends_in_order_is_gone(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        process.communicate("end\n", timeout=30)
        assert process.returncode == 0
        assert not path_of("other").exists()
        assert not observer.has_ended("other", host_id)  # It has deregistered; nobody asks.


def test_a_lock_on_another_host_cannot_be_seen(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        process.kill()
        process.wait(30)
        assert not observer.has_ended("other", "another host")
        assert not observer.has_ended("other", None)
        assert observer.has_ended("other", host_id)


def test_apps_of_other_names_have_other_folders(observer: ProcessLock) -> None:
    lock = ProcessLock("another shop", "other")
    assert lock.host_id not in (None, observer.host_id)
    lock.end()


def test_nobody_says_that_itself_has_ended(observer: ProcessLock) -> None:
    assert not observer.has_ended("observer", observer.host_id)


def test_a_lock_that_was_never_there_is_not_known_to_have_ended(observer: ProcessLock) -> None:
    assert not observer.has_ended("nobody", observer.host_id)


def test_when_the_folder_has_vanished_nobody_is_known_to_have_ended(observer: ProcessLock) -> None:
    with holder("other") as (process, host_id):
        shutil.rmtree(path_of("other").parent)
        assert not observer.has_ended("other", host_id)
        process.kill()
        process.wait(30)
        assert not observer.has_ended("other", host_id)


def test_a_folder_made_anew_is_another_host(observer: ProcessLock) -> None:
    shutil.rmtree(path_of("observer").parent)
    lock = ProcessLock(NAME, "later")
    assert lock.host_id not in (None, observer.host_id)
    assert not lock.has_ended("observer", observer.host_id)
    lock.end()


def test_without_a_folder_of_its_own_a_process_has_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "a file"
    nowhere.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere))
    lock = ProcessLock(NAME, "other")
    assert lock.host_id is None
    assert not lock.has_ended("another", None)
    lock.end()


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


def test_a_forked_child_has_a_lock_of_its_own(observer: ProcessLock) -> None:
    me = PerProcess(lambda: Process(NAME))
    mine = me[os.getpid()]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = me[os.getpid()]
        sees = theirs.liveness.has_ended(mine.id, mine.liveness.host_id)
        os.write(writing, f"{theirs.id} {sees}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    process_id, seen = os.read(reading, 100).decode().split()
    os.close(reading)
    os.close(writing)
    assert process_id != mine.id
    assert seen == "False"
    assert observer.has_ended(process_id, observer.host_id)
    assert not observer.has_ended(mine.id, mine.liveness.host_id)
    mine.liveness.end()


#: Has a lock, and a forked child that outlives it.
_FORKED = """
import os, sys
from async_hooks.host.per_process import PerProcess
from async_hooks.relay.process import Process
me = PerProcess(lambda: Process(sys.argv[1]), Process.close)
parent = me[os.getpid()]
parent.liveness
if os.fork():
    os.wait()
else:
    print(parent.id, parent.liveness.host_id, flush=True)
    sys.stdin.read()
"""


def test_a_forked_child_does_not_hold_its_parents_lock(observer: ProcessLock) -> None:
    command = [sys.executable, "-c", _FORKED, NAME]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        process_id, host_id = parent.stdout.readline().split()
        assert not observer.has_ended(process_id, host_id)
        parent.kill()
        parent.wait(30)
        assert observer.has_ended(process_id, host_id)
