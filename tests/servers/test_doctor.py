"""`flask async-hooks doctor` beside a real server for each problem."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import self_signed
from tests.support.servers import ROOT, answers, free_port
from tests.support.site import SHOP, gunicorn, running

pytestmark = pytest.mark.slow

Serve = Callable[..., str]

THREADS = ("-k", "gthread", "--threads", "4")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start gunicorn with an app and return its address."""
    with ExitStack() as stack:

        def start(app: str, *options: str, scheme: str = "http", **environ: str) -> str:
            port = free_port()
            command = gunicorn(*(options or THREADS), "-b", f"127.0.0.1:{port}", app=app)
            is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
            stack.enter_context(running(tmp_path, command, is_up, **environ))
            return f"{scheme}://127.0.0.1:{port}"

        yield start


def ask(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run the doctor; return its exit status and what it said."""
    run = subprocess.run(
        [sys.executable, "-m", "flask", "--app", SHOP, "async-hooks", "doctor", *arguments],
        cwd=ROOT,
        env={**os.environ, "LEDGER": os.devnull, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return run.returncode, run.stdout + run.stderr


def diagnosis(url: str, **environ: str) -> dict[str, Any]:
    status, said = ask("--url", url, "--json", **environ)
    found: dict[str, Any] = json.loads(said)
    assert status == (0 if found["ok"] else 1)
    return found


def test_all_is_well(serve: Serve) -> None:
    url = serve(SHOP)
    found = diagnosis(url)
    assert (found["ok"], found["url"], found["cause"]) == (True, url, None)
    status, said = ask("--url", url)
    assert status == 0
    assert f"Address: {url} (from --url)\nThe app answered a signed ping in " in said


def test_the_configured_address_is_asked_by_default(serve: Serve) -> None:
    status, said = ask(SITE_ASYNC_HOOKS_URL=serve(SHOP))
    assert status == 0
    assert "(from 'ASYNC_HOOKS_URL')" in said


def test_a_ping_runs_nothing(serve: Serve, tmp_path: Path) -> None:
    diagnosis(serve(SHOP))
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize(
    ("app", "cause", "remedy"),
    [
        ("another_app", "another-app", "Another app listens there"),
        ("to_https", "redirect-to-https", "redirects to 'https://shop.example/async-"),
        ("to_login", "redirect", "redirects to '/login'. Is a login page"),
        ("basic_auth", "basic-auth", "Set 'ASYNC_HOOKS_AUTH'"),
        ("login_api", "another-app", "a login page or a proxy answers there"),
        ("guarded", "before-request", "answered 302 FOUND before the fresh request"),
        ("broken", "before-request", "answered 500 INTERNAL SERVER ERROR before"),
        ("slow_clock()", "clock", "in the future; 60 are allowed. Is this machine's"),
    ],
)
def test_a_problem_is_named_with_its_remedy(
    serve: Serve, app: str, cause: str, remedy: str
) -> None:
    found = diagnosis(serve(f"tests.servers.troubles:{app}"))
    assert found["cause"] == cause
    assert remedy in found["remedy"]


def test_nothing_listens() -> None:
    found = diagnosis(f"http://127.0.0.1:{free_port()}")
    assert found["cause"] == "unreachable"
    assert "Does the app listen there?" in found["remedy"]


def test_another_secret(serve: Serve) -> None:
    found = diagnosis(serve(SHOP, SITE_SECRET_KEY="quite another key for this test"))
    assert found["cause"] == "wrong-secret"
    assert "another 'SECRET_KEY'" in found["remedy"]


def test_one_synchronous_worker(serve: Serve) -> None:
    found = diagnosis(serve(SHOP, "-k", "sync", "-w", "1"))
    assert found["cause"] == "one-worker"
    assert "--threads 8" in found["remedy"]


def test_two_synchronous_workers_are_well(serve: Serve) -> None:
    assert diagnosis(serve(SHOP, "-k", "sync", "-w", "2"))["ok"]


def test_an_untrusted_certificate(serve: Serve, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, "127.0.0.1")
    options = (*THREADS, "--certfile", str(cert), "--keyfile", str(key))
    url = serve(SHOP, *options, scheme="https")
    found = diagnosis(url)
    assert found["cause"] == "tls"
    assert "'ASYNC_HOOKS_VERIFY'" in found["remedy"]
    assert diagnosis(url, SITE_ASYNC_HOOKS_VERIFY=json.dumps(str(cert)))["ok"]


def test_plain_http_to_a_tls_port(serve: Serve, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, "127.0.0.1")
    url = serve(SHOP, *THREADS, "--certfile", str(cert), "--keyfile", str(key))
    assert diagnosis(url)["cause"] in ("connection-broken", "another-app")


def test_an_unknown_address() -> None:
    status, said = ask()
    assert status == 1
    assert "Address: unknown\nProblem: address-unknown\n" in said
    assert "Name it with --url" in said


def test_a_wrong_url_is_refused() -> None:
    status, said = ask("--url", "localhost:8000")
    assert status == 1
    assert "Error: expected 'ASYNC_HOOKS_URL' to be a base URL" in said


def test_an_app_without_hooks_is_told_so() -> None:
    app = "tests.servers.troubles:another_app"
    run = subprocess.run(
        [sys.executable, "-m", "flask", "--app", app, "async-hooks", "doctor"],
        cwd=ROOT,
        env={**os.environ, "LEDGER": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "has no AsyncHooks. Call hooks.init_app(app)" in run.stderr
