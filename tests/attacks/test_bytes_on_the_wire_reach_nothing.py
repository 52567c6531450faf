"""Malformed requests, as bytes to a real gunicorn: most carry a token that would be accepted.

What gunicorn refuses by itself has gunicorn's own page; what it lets through, the endpoint answers.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from async_hooks.signing import CONTENT_TYPE
from tests.attacks.attacking import BOUND, URL, Answered, exchange, request, serving, shop_token
from tests.support.site import Site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

_numbers = itertools.count(1)


class Shop(NamedTuple):
    site: Site
    port: int

    def refuses(self, sent: bytes, *statuses: int, half_close: bool = False) -> Answered:
        """Strike, and see that no receiver is reached and nothing crashes."""
        before = len(self.site.ledger)
        answer = exchange(self.port, sent, half_close=half_close)
        assert answer.status in statuses, answer
        assert not answer.has_verdict
        assert len(self.site.ledger) == before
        assert "Traceback" not in self.site.log
        return answer


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with serving(tmp_path_factory.mktemp("wire")) as (site, port, _):
        yield Shop(site, port)


def token() -> bytes:
    return shop_token(next(_numbers))


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def test_a_right_request_is_accepted(shop: Shop) -> None:
    assert exchange(shop.port, request(token())).status == 204


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "POSTS"]
)
def test_another_method_is_405(shop: Shop, method: str) -> None:
    answer = shop.refuses(request(token(), line=f"{method} {URL} HTTP/1.1"), 405)
    assert (answer.body, "Allow: POST" in answer.head) == (b"", True)


@pytest.mark.parametrize("method", ["post", "Post", "CONNECT", "PO ST", "POST\t", "\0POST", ""])
def test_what_is_no_method_is_refused(shop: Shop, method: str) -> None:
    shop.refuses(request(token(), line=f"{method} {URL} HTTP/1.1"), 0, 400, 405)


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override: POST", "X-HTTP-Method: POST"])
def test_no_header_overrides_the_method(shop: Shop, header: str) -> None:
    shop.refuses(request(token(), header, line=f"GET {URL} HTTP/1.1"), 405)


def test_a_chunked_body_is_malformed(shop: Shop) -> None:
    body = chunked(token())
    answer = shop.refuses(request(body, "Transfer-Encoding: chunked", length=False), 400)
    assert answer.body == b""


def test_an_absent_length_is_malformed(shop: Shop) -> None:
    answer = shop.refuses(request(token(), length=False), 400)
    assert answer.body == b""


@pytest.mark.parametrize("length", ["-1", "+9", "0x10", "1e3", "1_0", "", "9" * 5000, "5, 5", "\0"])
def test_a_length_that_is_no_number_is_malformed(shop: Shop, length: str) -> None:
    shop.refuses(request(token(), f"Content-Length: {length}", length=False), 0, 400, 413)


@pytest.mark.parametrize("second", ["Content-Length: 5", "Content-Length: 0"])
def test_two_lengths_are_malformed(shop: Shop, second: str) -> None:
    shop.refuses(request(token(), second), 400)


@pytest.mark.parametrize(
    "encoding", ["chunked", "gzip", "gzip, chunked", "identity", "xchunked", "chunked, identity"]
)
def test_a_length_and_a_transfer_encoding_are_malformed(shop: Shop, encoding: str) -> None:
    shop.refuses(request(chunked(token()), f"Transfer-Encoding: {encoding}"), 400, 401, 501)


def test_a_megabyte_is_refused_unread(shop: Shop) -> None:
    body = b"x" * (2**20 + 64 * 1024 + 1)
    head = request(body).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    answer = shop.refuses(head, 413)
    assert answer.body == b""


def test_a_megabyte_that_is_allowed_is_no_token(shop: Shop) -> None:
    shop.refuses(request(b"x" * 2**20), 401)


def test_a_large_body_is_not_asked_for(shop: Shop) -> None:
    sent = request(b"", "Content-Length: 99999999", "Expect: 100-continue", length=False)
    shop.refuses(sent, 413, 100)


def test_a_body_that_ends_early_is_malformed(shop: Shop) -> None:
    whole = request(token())
    for cut in (1, 40, len(token()) - 1):
        assert shop.refuses(whole[:-cut], 400, half_close=True).body == b""


def test_a_head_that_ends_early_reaches_nothing(shop: Shop) -> None:
    head = request(token()).partition(b"\r\n\r\n")[0]
    for end in (1, 20, len(head)):
        shop.refuses(head[:end], 0, 400, half_close=True)


def test_a_reset_in_the_body_crashes_nothing(shop: Shop) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", shop.port)) as connection:
            connection.sendall(request(token())[:-20])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    before = len(shop.site.notes("done"))
    assert exchange(shop.port, request(token())).status == 204
    assert len(shop.site.notes("done")) == before + 1
    assert "Traceback" not in shop.site.log


@pytest.mark.parametrize(
    "line",
    [
        f"POST http://evil.example{URL} HTTP/1.1",
        f"POST https://evil.example:99999{URL} HTTP/1.1",
        f"POST http://user:password@evil.example{URL} HTTP/1.1",
        f"POST {URL}?task=os.system&token=x HTTP/1.1",
        f"POST {URL} HTTP/1.0",
        "POST /%61sync-hooks/%72un HTTP/1.1",
    ],
)
def test_another_spelling_of_the_endpoint_is_as_closed(shop: Shop, line: str) -> None:
    assert shop.refuses(request(b"no token", line=line), 401).body == b""


@pytest.mark.parametrize(
    "version", ["HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "HTTP/1.1 x", "http/1.1", ""]
)
def test_another_protocol_is_refused(shop: Shop, version: str) -> None:
    shop.refuses(request(token(), line=f"POST {URL} {version}"), 0, 400, 505)


@pytest.mark.parametrize(
    "path",
    [
        f"/{URL}",
        f"{URL}/",
        f"{URL};x",
        URL.upper(),
        "/async-hooks//run",
        "/async-hooks/./run",
        "/x/..%2fasync-hooks/run",
        "/async-hooks%2frun",
        "/async-hooks/run%00",
        "*",
        "run",
    ],
)
def test_a_path_that_is_not_the_endpoints_runs_nothing(shop: Shop, path: str) -> None:
    statuses = (400, 404, 308, 401, 405)
    shop.refuses(request(b"no token", line=f"POST {path} HTTP/1.1"), *statuses)


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
        b"\r\n\r\n\r\n\r\n",
        b"\xff" * 9000,
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"POST " + URL.encode() + b" HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"POST " + URL.encode() + b" HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"POST " + URL.encode() + b" HTTP/1.1\nHost: a\n\n",
        b"POST " + URL.encode() + b" HTTP/1.1\r\nX\0Y: z\r\n\r\n",
    ],
    ids=lambda bytes_: repr(bytes_[:12]),
)
def test_what_is_no_request_at_all_reaches_nothing(shop: Shop, bytes_: bytes) -> None:
    shop.refuses(bytes_, 0, 400, 401, 414, 431, half_close=True)


@pytest.mark.parametrize(
    ("header", "replaced"),
    [
        ("Content-Type: text/plain", f"Content-Type: {CONTENT_TYPE}"),
        ("Content-Type: application/json", f"Content-Type: {CONTENT_TYPE}"),
        ("Accept: */*", f"Content-Type: {CONTENT_TYPE}"),
        ("Content_Type: " + CONTENT_TYPE, f"Content-Type: {CONTENT_TYPE}"),
    ],
)
def test_another_content_type_is_malformed(shop: Shop, header: str, replaced: str) -> None:
    sent = request(token()).replace(replaced.encode(), header.encode())
    assert shop.refuses(sent, 400).body == b""


class TestPipelined:
    def both(self, shop: Shop, first: bytes, second: bytes) -> list[bytes]:
        """Send two requests at once on one connection, and return the status lines that came."""
        first = first.replace(b"Connection: close", b"Connection: keep-alive")
        with socket.create_connection(("127.0.0.1", shop.port), BOUND) as connection:
            connection.sendall(first + second)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        return [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]

    def test_a_stranger_and_a_token_are_told_apart(self, shop: Shop) -> None:
        before = len(shop.site.notes("done"))
        lines = self.both(shop, request(b"no token"), request(token()))
        assert [line[9:12] for line in lines] == [b"401", b"204"]
        assert len(shop.site.notes("done")) == before + 1

    def test_a_refused_body_is_not_taken_for_a_request(self, shop: Shop) -> None:
        before = len(shop.site.ledger)
        inner = request(token())
        for outer in (
            request(inner),
            request(inner).replace(CONTENT_TYPE.encode(), b"text/plain", 1),
            request(inner, line=f"PUT {URL} HTTP/1.1"),
            request(chunked(inner), "Transfer-Encoding: chunked", length=False),
        ):
            lines = self.both(shop, outer, request(b"no token"))
            assert {line[9:12] for line in lines} <= {b"400", b"401", b"405"}
        assert len(shop.site.ledger) == before

    def test_the_same_token_twice_runs_once(self, shop: Shop) -> None:
        before = len(shop.site.notes("done"))
        twice = request(token())
        lines = self.both(shop, twice, twice)
        assert [line[9:12] for line in lines] == [b"204", b"409"]
        assert len(shop.site.notes("done")) == before + 1


def test_all_the_while_the_site_serves(shop: Shop) -> None:
    before = len(shop.site.notes("done"))
    line = "GET /visit/1 HTTP/1.1"
    assert exchange(shop.port, request(b"", line=line, length=False)).status == 200
    wait_until(lambda: len(shop.site.notes("done")) == before + 1)
