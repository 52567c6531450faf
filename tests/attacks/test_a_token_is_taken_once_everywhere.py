"""The record of consumed tokens, when its folder is tampered with, filled or not shared.

The record by itself: tests/test_replay.py. Replays over worker processes:
test_no_token_but_ours_gets_in.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from async_hooks import AsyncHooks
from async_hooks.envelope import Envelope, new_id
from async_hooks.signing import CONTENT_TYPE
from async_hooks.state import state_of
from tests.attacks.attacking import Target
from tests.support.apps import KEY, make_task


@pytest.fixture(autouse=True)
def tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def two_spans(target: Target) -> list[bytes]:
    """Return tokens that are both valid and lie in different files of the record."""
    return [target.token(age=age) for age in (299, -59)]


def test_a_folder_that_a_cleaner_removed_stops_nothing(tmpdir: Path) -> None:
    """Temporary directories are swept of what nobody touched for days."""
    target = Target()
    before, after = two_spans(target)
    assert target.post(before).status_code == 204
    for folder in tmpdir.glob("async_hooks*"):
        shutil.rmtree(folder)
    assert target.post(before).status_code == 409
    assert target.post(after).status_code == 204
    assert target.post(after).status_code == 409


def test_a_full_temporary_directory_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user of the machine can fill it."""
    target = Target()
    before, after = two_spans(target)
    assert target.post(before).status_code == 204
    opened = os.open

    def full(path: Any, flags: int, *args: Any) -> int:
        if "span-" in os.fspath(path):
            raise OSError(28, "No space left on device")
        return opened(path, flags, *args)

    monkeypatch.setattr(os, "open", full)
    for token in (before, after):
        target.post(token)
        assert target.post(token).status_code == 409
    assert target.reached.count({"lead": 7}) == 2


def test_another_release_of_the_app_shares_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """While a deploy is under way, both run, each from a folder of its own."""
    token = Target().token(Envelope(id=new_id(), task="t", body="{}"))
    taken = [other_release(tmp_path_factory.mktemp("release"), token) for _ in range(2)]
    assert sorted(taken) == [204, 409]


def other_release(folder: Path, token: bytes) -> int:
    app = Flask("tests.app", root_path=str(folder))
    app.secret_key = KEY
    hooks = AsyncHooks(app)
    make_task(hooks, "attack", name="t", run_action=lambda task, data: None)
    assert state_of(app).signing.audiences[0] == "tests.app"
    return (
        app.test_client()
        .post("/async-hooks/run", data=token, content_type=CONTENT_TYPE)
        .status_code
    )
