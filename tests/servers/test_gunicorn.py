"""The movement on gunicorn, two gthread workers unless a test says otherwise."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.support.servers import answers, free_port
from tests.support.site import SHOP, Site, gunicorn, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., tuple[Site, str]]

NO_FALLBACK = {"SITE_ASYNC_HOOKS_FALLBACK": "null"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(*options: str, app: str = SHOP, **environ: str) -> tuple[Site, str]:
            port = free_port()
            options = options or ("-w", "2", "-k", "gthread", "--threads", "8")
            command = gunicorn(*options, "-b", f"127.0.0.1:{port}", app=app)
            is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
            site = stack.enter_context(
                running(tmp_path, command, is_up, **{**NO_FALLBACK, **environ})
            )
            return site, f"http://127.0.0.1:{port}"

        yield start


def test_each_envelope_arrives_once_by_post_in_a_fresh_request(start: Start) -> None:
    site, url = start()
    for number in range(50):
        assert requests.get(f"{url}/visit/{number}", timeout=30).ok
    done = site.wait_for("done", 50)
    assert sorted(line["done"] for line in done) == list(range(50))
    assert {line["method"] for line in site.notes("method")} == {"POST"}
    site.stop()
    assert site.log.count('POST /async-hooks/run HTTP/1.1" 204') == 50
    assert site.notes("failed") == []


def test_envelopes_arrive_in_other_processes_too(start: Start) -> None:
    other, other_url = start()
    site, url = start(SITE_ASYNC_HOOKS_URL=other_url)
    for number in range(10):
        assert requests.get(f"{url}/visit/{number}", timeout=30).ok
    site.wait_for("done", 10)
    notes = site.notes("launched_in")
    assert {note["pid"] for note in notes}.isdisjoint(note["launched_in"] for note in notes)
    other.stop()
    assert other.log.count('POST /async-hooks/run HTTP/1.1" 204') == 10
    assert "POST" not in site.log


def test_the_visitor_never_waits_for_a_task(start: Start) -> None:
    site, url = start()
    site.hold.touch()
    for number in range(10):
        assert requests.get(f"{url}/visit/{number}", timeout=30).ok
    assert site.notes("done") == []
    site.hold.unlink()
    site.wait_for("done", 10)


def test_three_receivers_have_a_request_each(start: Start) -> None:
    site, url = start()
    for number in range(20):
        assert requests.get(f"{url}/split/{number}", timeout=30).ok
    notes = site.wait_for("receiver", 60)
    assert sorted((line["number"], line["receiver"]) for line in notes) == sorted(
        (number, name) for number in range(20) for name in ("one", "two", "three")
    )
    assert len({line["id"] for line in notes}) == 60


def test_no_more_run_at_once_in_a_process_than_concurrency_allows(start: Start) -> None:
    site, url = start("-w", "1", "-k", "gthread", "--threads", "8")
    site.hold.touch()
    for number in range(6):
        requests.get(f"{url}/visit/{number}", timeout=30)
    site.wait_for("number", 2)
    assert requests.get(f"{url}/", timeout=30).text == "up"
    assert len(site.notes("number")) == 2
    site.hold.unlink()
    site.wait_for("done", 6)


@pytest.mark.parametrize(
    "options",
    [
        ("-w", "1", "-k", "sync"),
        ("-w", "2", "-k", "sync", "--preload"),
        ("-w", "2", "-k", "gthread", "--threads", "4", "--preload"),
    ],
    ids=" ".join,
)
def test_other_workers_deadlock_on_nothing(start: Start, options: tuple[str, ...]) -> None:
    site, url = start(*options)
    for number in range(20):
        assert requests.get(f"{url}/visit/{number}", timeout=30).ok
    site.wait_for("done", 20)
    assert site.notes("failed") == []


def test_a_unix_socket_is_found_out(tmp_path: Path) -> None:
    path = str(tmp_path / "g.sock")
    command = gunicorn("-w", "2", "-b", f"unix:{path}")
    with running(tmp_path, command, lambda: answers(path), **NO_FALLBACK) as site:
        import socket

        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"GET /visit/1 HTTP/1.1\r\nHost: shop.example\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        site.wait_for("done", 1)
        assert site.notes("url")[0]["url"] == "http://shop.example/visit/1"


def test_behind_a_proxy_urls_are_the_visitors(start: Start) -> None:
    site, url = start(app="tests.support.shop:proxied")
    forwarded = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "shop.example",
        "X-Forwarded-Prefix": "/de",
    }
    requests.get(f"{url}/visit/1", headers=forwarded, timeout=30)
    site.wait_for("done", 1)
    [note] = site.notes("url")
    assert note["url"] == "https://shop.example/de/visit/1"
    assert note["path"] == "/async-hooks/run"


def test_mounted_under_a_path_the_endpoint_is_found_there(start: Start) -> None:
    site, url = start(app="tests.support.shop:mounted")
    requests.get(f"{url}/shop/visit/1", timeout=30)
    site.wait_for("done", 1)
    assert site.notes("url")[0]["url"] == f"{url}/shop/visit/1"
    site.stop()
    assert "POST /shop/async-hooks/run" in site.log


@pytest.mark.parametrize("mount", ["proxied_mount", "mounted_proxy"])
def test_a_mount_and_a_proxys_prefix_are_told_apart(start: Start, mount: str) -> None:
    site, url = start(
        "-w", "1", "-k", "gthread", "--threads", "4", app=f"tests.servers.mounts:{mount}"
    )
    headers = {"X-Forwarded-Prefix": "/de", "X-Forwarded-Host": "shop.example"}
    for number in range(3):
        requests.get(f"{url}/shop/visit/{number}", headers=headers, timeout=30)
    site.wait_for("done", 3)
    site.stop()
    assert site.log.count('"POST /shop/async-hooks/run HTTP/1.1" 204') >= 3
    assert site.notes("url")[0]["url"].startswith("http://shop.example/")


def test_a_path_from_a_header_poisons_nothing(start: Start) -> None:
    site, url = start("-w", "1", "-k", "gthread", "--threads", "4")
    requests.get(f"{url}/evil/visit/1", headers={"SCRIPT_NAME": "/evil"}, timeout=30)
    requests.get(f"{url}/visit/2", timeout=30)
    assert sorted(line["done"] for line in site.wait_for("done", 2)) == [1, 2]
    assert site.notes("failed") == []


def test_trusted_hosts_do_not_stop_it(start: Start) -> None:
    site, url = start(SITE_TRUSTED_HOSTS='["shop.example"]')
    requests.get(f"{url}/visit/1", headers={"Host": "shop.example"}, timeout=30)
    site.wait_for("done", 1)
    assert site.notes("url")[0]["url"] == "http://shop.example/visit/1"


def test_a_configured_address_serves_a_process_that_served_no_request(start: Start) -> None:
    site, url = start(SITE_ASYNC_HOOKS_URL="http://127.0.0.1:9")
    requests.get(f"{url}/visit/1", timeout=30)
    [note] = site.wait_for("failed", 1)
    assert "'http://127.0.0.1:9/async-hooks/run' can't be reached" in note["error"]


def test_a_refused_address_falls_back_in_process(start: Start) -> None:
    site, url = start(
        SITE_ASYNC_HOOKS_URL="http://127.0.0.1:9", SITE_ASYNC_HOOKS_FALLBACK="in_process"
    )
    requests.get(f"{url}/visit/1", timeout=30)
    site.wait_for("done", 1)
    [note] = site.notes("launched_in")
    assert note["pid"] == note["launched_in"]
    assert "runs in this process instead" in site.log


def test_an_orderly_stop_runs_what_waits(start: Start) -> None:
    site, url = start("-w", "1", "-k", "gthread", "--threads", "8")
    site.hold.touch()
    for number in range(30):
        assert requests.get(f"{url}/visit/{number}", timeout=30).ok
    site.wait_for("number", 2)
    site.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Handling signal: term" in site.log, "the stop")
    site.hold.unlink()
    site.process.wait(30)
    assert sorted(line["done"] for line in site.notes("done")) == list(range(30))
    assert site.notes("failed") == []


STREAMING = [("-w", "1", "-k", "gthread", "--threads", "8"), ("-w", "1", "-k", "gevent")]


@pytest.mark.parametrize("options", STREAMING, ids=" ".join)
def test_a_stream_holds_back_no_launch(start: Start, options: tuple[str, ...]) -> None:
    site, url = start(*options)
    (stream := site.folder / "stream").touch()
    with requests.get(f"{url}/events/1", stream=True, timeout=30):
        site.wait_for("done", 1)  # Else it would wait for ever.
        stream.unlink()
    assert site.notes("method")[0]["method"] == "POST"


@pytest.mark.parametrize("options", STREAMING, ids=" ".join)
def test_a_stop_during_a_stream_loses_no_launch(start: Start, options: tuple[str, ...]) -> None:
    environ = {"SITE_ASYNC_HOOKS_TRANSPORT": "in_process"}  # A server that stops takes no POST.
    site, url = start(*options, "--graceful-timeout", "3", **environ)
    (site.folder / "stream").touch()
    with requests.get(f"{url}/events/1", stream=True, timeout=30) as response:
        next(response.iter_lines())
        site.stop()
    assert [line["done"] for line in site.notes("done")] == [1]


def test_a_killed_executor_is_reported_and_nothing_is_run_twice(start: Start) -> None:
    _, other_url = start()
    site, url = start(SITE_ASYNC_HOOKS_URL=other_url, SITE_ASYNC_HOOKS_FALLBACK="in_process")
    site.hold.touch()
    requests.get(f"{url}/visit/1", timeout=30)
    [note] = site.wait_for("number", 1)
    os.kill(note["pid"], signal.SIGKILL)
    [failed] = site.wait_for("failed", 1)
    assert failed["failed"] == note["id"]
    assert "broke before a verdict came" in failed["error"]
    site.hold.unlink()
    site.stop()
    assert len(site.notes("number")) == 1


def test_an_exception_without_a_text_is_the_failure_of_a_run_that_began(
    start: Start, tmp_path: Path
) -> None:
    outbox = f"sqlite:///{tmp_path / 'outbox.db'}"
    site, url = start(SITE_ASYNC_HOOKS_OUTBOX=outbox, SITE_ASYNC_HOOKS_MAX_ATTEMPTS="1")
    for number in range(5):
        assert requests.get(f"{url}/api/{number}", timeout=30).ok
        assert requests.get(f"{url}/visit/{number}", timeout=30).ok
    wait_until(lambda: site.log.count("was discarded: ApiError: <cannot be shown>") == 5)
    site.wait_for("done", 5)
    assert sorted(line["called"] for line in site.notes("called")) == list(range(5))
    assert "before_request" not in site.log


def test_several_apps_of_one_process_keep_apart(start: Start) -> None:
    # site.py makes three apps with one AsyncHooks; only the served one launches.
    site, url = start()
    requests.get(f"{url}/visit/1", timeout=30)
    site.wait_for("done", 1)
    site.stop()
    assert len(site.notes("number")) == 1
