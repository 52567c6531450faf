"""Tasks whose module a view imports: what a restarted server says and does about their backlog."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.servers import ROOT, answers, free_port
from tests.support.site import Site, gunicorn, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LATE = "tests.servers.late:create_app()"
IMPORTS = {"SITE_ASYNC_HOOKS_IMPORTS": json.dumps(["tests.servers.late_tasks"])}
WARNING = "Task 'late order' is unknown to this code, so its deliveries wait"


@contextmanager
def serving(folder: Path, **environ: str) -> Iterator[tuple[Site, str]]:
    port = free_port()
    options = ("-w", "1", "-k", "gthread", "--threads", "4", "-b", f"127.0.0.1:{port}")
    environ = {"FOLDER": str(folder), **environ}
    command = gunicorn(*options, app=LATE)
    with running(folder, command, lambda: answers(("127.0.0.1", port)), **environ) as site:
        yield site, f"http://127.0.0.1:{port}"


@pytest.fixture
def backlog(tmp_path: Path) -> Path:
    """The folder of a server that was killed before it delivered what it had launched."""
    with serving(tmp_path, SITE_ASYNC_HOOKS_RELAY="false") as (site, url):
        assert requests.get(f"{url}/order/1", timeout=30).ok
        site.kill()
    return tmp_path


def flask(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", LATE, "async-hooks", *arguments],
        cwd=ROOT,
        env={**os.environ, "FOLDER": str(folder), "LEDGER": str(folder / "ledger"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_restarted_server_says_at_once_which_task_it_does_not_know(backlog: Path) -> None:
    with serving(backlog) as (site, url):
        assert requests.get(url, timeout=30).ok
        wait_until(lambda: WARNING in site.log, "the warning", bound=5)
        assert "'ASYNC_HOOKS_IMPORTS'" in site.log
        assert site.ledger == []
        # Somebody uses the view at last.
        assert requests.get(f"{url}/order/2", timeout=30).ok
        site.wait_for("done", 2)
        assert site.log.count(WARNING) == 1


def test_a_restarted_server_runs_what_its_imports_know(backlog: Path) -> None:
    with serving(backlog, **IMPORTS) as (site, url):
        assert requests.get(url, timeout=30).ok
        assert site.wait_for("done", 1) == [{"done": 1}]
        assert WARNING not in site.log


def test_commands_know_what_is_imported_at_the_start(backlog: Path) -> None:
    unknown = flask(backlog, "check")
    assert unknown.returncode == 1
    assert "Task 'late order' is unknown to this code, and has 1 unfinished" in unknown.stderr
    assert "1 unfinished delivery, all known." in flask(backlog, "check", **IMPORTS).stdout
    assert "parked" not in flask(backlog, "status", **IMPORTS).stdout
    assert flask(backlog, "worker", "--drain", **IMPORTS).returncode == 0
    assert json.loads((backlog / "ledger").read_text()) == {"done": 1}


@pytest.mark.parametrize(
    ("command", "code"), [(["check"], 1), (["worker", "--once"], 2), (["status"], 1)]
)
def test_a_module_that_cannot_be_imported_is_a_sentence(
    tmp_path: Path, command: list[str], code: int
) -> None:
    done = flask(tmp_path, *command, SITE_ASYNC_HOOKS_IMPORTS='["tests.servers.none"]')
    assert done.returncode == code, done.stderr
    assert "'ASYNC_HOOKS_IMPORTS' names 'tests.servers.none', which can't be" in done.stderr
    assert "Traceback" not in done.stderr
