"""What a client says of hosts, ports and prefixes decides nothing about where the app connects.

Each server is fresh: the attack is the first request that it ever sees. The fallback is off, so
that a task which arrives has arrived by the loopback. Redirects and proxies of the environment
are tried in tests/test_loopback.py.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.attacking import (
    NO_FALLBACK,
    Listener,
    exchange,
    listening,
    read_until,
    request,
    serving,
)
from tests.support.servers import answers, free_port
from tests.support.site import SHOP, Site, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

THREADED = ("-w", "1", "-k", "gthread", "--threads", "8")


@pytest.fixture
def evil() -> Iterator[Listener]:
    """The host that the attacks name; it notes who connects, and waits for what they say."""
    with listening(lambda connection: read_until(connection, b"\r\n\r\n")) as listener:
        yield listener


def headers(evil: Listener) -> list[str]:
    host = f"127.0.0.1:{evil.port}"
    return [
        f"X-Forwarded-Host: {host}",
        "X-Forwarded-Server: 127.0.0.1",
        f"X-Forwarded-Port: {evil.port}",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Prefix: /evil",
        f"X-Forwarded-For: {host}, 127.0.0.1",
        f"Forwarded: for=127.0.0.1;host={host};proto=http",
        f"X-Original-Host: {host}",
        f"X-Host: {host}",
        f"X-Rewrite-URL: {evil.url}/x",
        f"X-Original-URL: {evil.url}/x",
        "X-Script-Name: /evil",
        f"Server-Name: {host}",
        f"Server-Port: {evil.port}",
        f"Gunicorn.Socket: {host}",
        f"Proxy: {evil.url}",
        f"Origin: {evil.url}",
        f"Referer: {evil.url}/",
    ]


def trigger(evil: Listener, *more: str, target: str = "/visit/1") -> bytes:
    """Return the bytes of a request that launches, and names the evil host wherever it can."""
    sent = request(b"", *headers(evil), *more, line=f"GET {target} HTTP/1.1", length=False)
    return sent.replace(b"Host: shop.example", f"Host: 127.0.0.1:{evil.port}".encode())


def arrives_by_loopback(site: Site, evil: Listener, address: int | str, sent: bytes) -> None:
    assert exchange(address, sent).status == 200, site.log
    site.wait_for("done", 1)
    wait_until(lambda: 'POST /async-hooks/run HTTP/1.1" 204' in site.log)
    assert evil.connections == 0
    assert site.notes("failed") == []


@pytest.mark.parametrize("app", [SHOP, "tests.support.shop:proxied"])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_headers_do_not(tmp_path: Path, evil: Listener, app: str, unix: bool) -> None:
    with serving(tmp_path, *THREADED, app=app, unix=unix) as (site, port, path):
        arrives_by_loopback(site, evil, path if unix else port, trigger(evil))


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_an_absolute_target_does_not(tmp_path: Path, evil: Listener, unix: bool) -> None:
    with serving(tmp_path, *THREADED, unix=unix) as (site, port, path):
        sent = trigger(evil, target=f"{evil.url}/visit/1")
        arrives_by_loopback(site, evil, path if unix else port, sent)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_script_name_header_does_not_for_long(tmp_path: Path, evil: Listener, unix: bool) -> None:
    """gunicorn believes this header of its neighbours: of whomever a local proxy lets through.

    Whatever becomes of the liar's own launch, those of later visitors arrive.
    """
    with serving(tmp_path, *THREADED, unix=unix) as (site, port, path):
        address = path if unix else port
        lie = trigger(evil, "SCRIPT_NAME: /evil", target="/evil/visit/1")
        for count, sent in enumerate((lie, trigger(evil), trigger(evil)), start=1):
            assert exchange(address, sent).status == 200, site.log
            settled = lambda count=count: len(site.notes("done") + site.notes("failed")) >= count  # noqa: E731
            wait_until(settled, f"{count} launches: {site.log}")
        assert len(site.notes("done")) >= 2, site.log
        assert evil.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example:99999999",
        "[::1]:x",
        "a" * 4000,
        "evil\xff.example",
        "user:password@evil.example",
        "evil.example/../..",
        "127.0.0.1#",
        "'; DROP TABLE",
    ],
)
def test_a_host_that_is_none_does_not(shop: tuple[Site, int], host: str) -> None:
    site, port = shop
    before = len(site.notes("done"))
    sent = request(b"", line="GET /visit/1 HTTP/1.1", length=False)
    sent = sent.replace(b"shop.example", host.encode("latin-1"))
    if exchange(port, sent).status == 200:
        site.wait_for("done", before + 1)
    assert site.notes("failed") == []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, int]]:
    with serving(tmp_path_factory.mktemp("hosts")) as (site, port, _):
        yield site, port


def test_without_a_host_it_arrives(shop: tuple[Site, int]) -> None:
    site, port = shop
    before = len(site.notes("done"))
    assert exchange(port, b"GET /visit/1 HTTP/1.0\r\n\r\n").status == 200
    site.wait_for("done", before + 1)


def test_the_environments_proxies_and_netrc_do_not(tmp_path: Path, evil: Listener) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1\nlogin ada\npassword s3cret\ndefault login a password b\n")
    netrc.chmod(0o600)
    heads: list[bytes] = []

    def note(connection: socket.socket) -> None:
        heads.append(read_until(connection, b"\r\n\r\n"))
        connection.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY")
    proxies: dict[str, Any] = dict.fromkeys(names, evil.url)
    with (
        listening(note) as endpoint,
        serving(
            tmp_path,
            *THREADED,
            SITE_ASYNC_HOOKS_URL=endpoint.url,
            NETRC=str(netrc),
            HOME=str(tmp_path),
            **proxies,
        ) as (site, port, _),
    ):
        assert (
            exchange(port, request(b"", line="GET /visit/1 HTTP/1.1", length=False)).status == 200
        )
        site.wait_for("failed", 1)
    assert evil.connections == 0
    assert [b"authorization" in head.lower() for head in heads] == [False]


def test_under_waitress_a_forwarded_port_is_not_believed(tmp_path: Path, evil: Listener) -> None:
    """waitress lets a trusted proxy's headers replace the port; the ping there holds no data."""
    pytest.importorskip("waitress")
    port = free_port()
    command = [sys.executable, "-m", "waitress", f"--listen=127.0.0.1:{port}"]
    command += ["--trusted-proxy=127.0.0.1", "--trusted-proxy-count=1"]
    command += ["--trusted-proxy-headers=x-forwarded-port x-forwarded-host", SHOP]
    environ = {**NO_FALLBACK, "SITE_ASYNC_HOOKS_FALLBACK": '"in_process"'}
    is_up = lambda: answers(("127.0.0.1", port))  # noqa: E731
    with running(tmp_path, command, is_up, **environ) as site:
        lies = (f"X-Forwarded-Port: {evil.port}", f"X-Forwarded-Host: 127.0.0.1:{evil.port}")
        sent = request(b"", *lies, line="GET /visit/1 HTTP/1.1", length=False)
        assert exchange(port, sent).status == 200, site.log
        site.wait_for("done", 1)
        assert site.notes("failed") == []
        assert evil.connections <= 1
