from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from async_hooks import TokenReplayed
from async_hooks.host.replay import ReplayGuard

NOW = 1_790_000_000.0


@pytest.fixture(autouse=True)
def tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def is_first(replay_guard: ReplayGuard, token: bytes, issued_at: float = NOW) -> bool:
    try:
        replay_guard.consume(token, issued_at)
    except TokenReplayed:
        return False
    return True


def test_a_token_is_consumed_once() -> None:
    replay_guard = ReplayGuard("app", 360)
    assert is_first(replay_guard, b"a")
    assert not is_first(replay_guard, b"a")
    assert is_first(replay_guard, b"b")


def test_processes_share_the_record() -> None:
    one, two = ReplayGuard("app", 360), ReplayGuard("app", 360)
    assert one.host_id == two.host_id
    assert is_first(one, b"a")
    assert not is_first(two, b"a")
    assert is_first(two, b"b")
    assert not is_first(one, b"b")


def test_other_apps_have_a_record_of_their_own() -> None:
    one, two = ReplayGuard("app", 360), ReplayGuard("another", 360)
    assert one.host_id != two.host_id
    assert is_first(one, b"a")
    assert is_first(two, b"a")


def test_of_many_processes_one_consumes(tmpdir: Path) -> None:
    replay_guard = ReplayGuard("app", 360)
    replay_guard.consume(b"opened before the fork", NOW)
    reading, writing = os.pipe()
    for _ in range(8):
        if os.fork() == 0:
            try:
                os.write(
                    writing,
                    b"".join(b"01"[is_first(replay_guard, b"%d" % n) :][:1] for n in range(200)),
                )
            finally:
                os._exit(0)
    os.close(writing)
    for _ in range(8):
        os.wait()
    with os.fdopen(reading, "rb") as pipe:
        answers = pipe.read()
    assert len(answers) == 8 * 200
    assert answers.count(b"1") == 200


def test_of_many_threads_one_consumes() -> None:
    replay_guard = ReplayGuard("app", 360)
    consumed: list[int] = []

    def consume() -> None:
        for number in range(300):
            if is_first(replay_guard, b"%d" % number, NOW + 300 * (number % 3)):
                consumed.append(number)

    threads = [threading.Thread(target=consume) for _ in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert sorted(consumed) == list(range(300))


#: Freezes just before it calls a function of ``os`` for the token, and says whether it was first.
_FROZEN = """
import os, signal, sys
from async_hooks import TokenReplayed
from async_hooks.host.replay import ReplayGuard
guard = ReplayGuard("app", 360)
guard.consume(b"opened before", float(sys.argv[2]))
call = getattr(os, sys.argv[1])
def freeze(*args):
    os.kill(os.getpid(), signal.SIGSTOP)
    return call(*args)
setattr(os, sys.argv[1], freeze)
try:
    guard.consume(b"a", float(sys.argv[2]))
except TokenReplayed:
    sys.exit("replayed")
"""


@pytest.mark.parametrize("call", ["write", "pread"])
def test_a_process_that_is_frozen_while_it_consumes_holds_up_nobody(
    tmpdir: Path, call: str
) -> None:
    replay_guard = ReplayGuard("app", 360)
    frozen = subprocess.Popen(
        [sys.executable, "-c", _FROZEN, call, str(NOW)],
        env={**os.environ, "TMPDIR": str(tmpdir)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with frozen:
        try:
            _, status = os.waitpid(frozen.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            assert is_first(replay_guard, b"another")
            has_appended = call == "pread"
            assert is_first(replay_guard, b"a") is not has_appended
            frozen.send_signal(signal.SIGCONT)
            said = frozen.communicate(timeout=30)[1]
            assert said == ("" if has_appended else "replayed\n")
        finally:
            frozen.kill()


def test_a_process_adds_nothing_for_a_replay_that_it_knows(tmpdir: Path) -> None:
    replay_guard = ReplayGuard("app", 360)
    assert is_first(replay_guard, b"a")
    [path] = tmpdir.glob("*/*/span-*")
    size = path.stat().st_size
    assert not is_first(replay_guard, b"a")
    assert path.stat().st_size == size


def test_a_record_is_removed_when_no_token_can_be_valid(tmpdir: Path) -> None:
    replay_guard = ReplayGuard("app", 360)
    for step in range(30):
        assert is_first(replay_guard, b"a", NOW + 300 * step)
    assert len(list(tmpdir.glob("*/*/span-*"))) == 15


def test_processes_that_were_configured_differently_share_the_record() -> None:
    shorter, longer = ReplayGuard("app", 60), ReplayGuard("app", 360)
    assert is_first(longer, b"a", NOW)
    assert not is_first(shorter, b"a", NOW)
    assert is_first(shorter, b"b", NOW + 400)
    assert not is_first(ReplayGuard("app", 360), b"a", NOW)


def test_a_folder_that_was_cleaned_away_is_made_again(tmpdir: Path) -> None:
    replay_guard = ReplayGuard("app", 360)
    assert is_first(replay_guard, b"a")
    shutil.rmtree(tmpdir / f"async_hooks-{os.geteuid()}")
    assert is_first(replay_guard, b"b")
    assert is_first(replay_guard, b"c", NOW + 300)
    assert not is_first(ReplayGuard("app", 360), b"c", NOW + 300)


def test_a_record_cut_short_by_a_full_disk_is_mended(tmpdir: Path) -> None:
    one, two = ReplayGuard("app", 360), ReplayGuard("app", 360)
    assert is_first(one, b"a")
    [path] = tmpdir.glob("*/*/span-*")
    with path.open("ab") as file:
        file.write(b"torn")
    assert is_first(two, b"b")
    assert not is_first(one, b"b")
    assert not is_first(ReplayGuard("app", 360), b"b")


def test_a_record_that_cannot_be_kept_is_reported_and_kept_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    replay_guard = ReplayGuard("app", 360)
    assert is_first(ReplayGuard("app", 360), b"consumed elsewhere before")
    monkeypatch.setattr(os, "write", full)
    assert replay_guard.host_id is not None
    assert replay_guard.consume(b"a", NOW) is False
    assert not is_first(replay_guard, b"consumed elsewhere before")
    assert not is_first(replay_guard, b"a")
    assert replay_guard.host_id is None
    assert is_first(replay_guard, b"b")
    assert caplog.text.count("No space left on device") == 1


def test_what_only_this_process_knows_is_never_said_to_be_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay_guard = ReplayGuard("app", 360)
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", lambda *args: os.close(-1))
        assert replay_guard.consume(b"a", NOW) is False
    assert replay_guard.consume(b"b", NOW + 300) is True  # Its folder can be used again.
    assert replay_guard.consume(b"c", NOW) is False


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_can_enter_is_not_used(
    tmpdir: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmpdir / f"async_hooks-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(mode)
    replay_guard = ReplayGuard("app", 360)
    assert replay_guard.host_id is None
    assert is_first(replay_guard, b"a")
    assert not is_first(replay_guard, b"a")
    assert list(folder.iterdir()) == []
    assert "is not a folder of this user's alone" in caplog.text


def test_a_link_in_its_place_is_not_followed(tmpdir: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    elsewhere.chmod(0o700)
    (tmpdir / f"async_hooks-{os.geteuid()}").symlink_to(elsewhere)
    assert ReplayGuard("app", 360).host_id is None


def test_the_folder_is_private(tmpdir: Path) -> None:
    is_first(ReplayGuard("app", 360), b"a")
    for path in tmpdir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.name == "host_id"
