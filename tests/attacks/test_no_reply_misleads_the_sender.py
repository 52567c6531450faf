"""What listens at the loopback's address and is not our endpoint, or pretends to be.

Statuses, redirects and endless heads: tests/test_loopback.py. There too a byte a second, for the
lean client; here for both, an auth object being what asks for the one that uses requests.
"""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from requests.auth import AuthBase

from async_hooks import TransportError
from async_hooks.envelope import Envelope
from async_hooks.signing import VERDICT_HEADER
from async_hooks.state import state_of
from async_hooks.transports.address import Address
from async_hooks.transports.loopback import Loopback
from async_hooks.verdict import Outcome, Verdict
from tests.attacks.attacking import BOUND, Listener, listening, read_request
from tests.support.apps import make_app, make_task
from tests.support.facts import Facts

E = Envelope(id="1", task="t", body="{}")

#: What a sender may take in at most of an answer; buffers of both ends included.
FEW = 16 * 2**20


class Bare(AuthBase):
    """An auth object that adds nothing."""

    def __call__(self, r: Any) -> Any:
        return r


@pytest.fixture(params=[None, Bare()], ids=["lean", "requests"])
def auth(request: pytest.FixtureRequest) -> Any:
    return request.param


class Flood:
    """Answers with bytes for as long as they are taken, and counts them."""

    def __init__(self, *parts: bytes, over_and_over: bytes = b"", most: int = 2**30) -> None:
        self.taken = 0
        self._parts, self._over, self._most = parts, over_and_over, most

    def __call__(self, connection: socket.socket) -> None:
        try:
            read_request(connection)
            for part in self._chunks():
                connection.sendall(part)
                self.taken += len(part)
                if self.taken > self._most:
                    return
        except OSError:
            pass

    def _chunks(self) -> Iterator[bytes]:
        yield from self._parts
        if self._over:
            yield from repeat(self._over)


def send(listener: Listener, auth: Any, timeout: float = 5.0) -> TransportError:
    """Send an envelope there; it must fail, within the bound."""
    app, _ = make_app(
        ASYNC_HOOKS_URL=listener.url, ASYNC_HOOKS_AUTH=auth, ASYNC_HOOKS_TIMEOUT=timeout
    )
    transport = Loopback(app, state_of(app).config, Address(listener.url))
    errors: list[BaseException] = []

    def deliver() -> None:
        try:
            transport.send(E)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(BOUND)
    assert not thread.is_alive(), f"It still waits for an answer {BOUND} seconds later."
    [error] = errors
    assert isinstance(error, TransportError), error
    return error


OK = b"HTTP/1.1 200 OK\r\n"
MEGABYTE = b"x" * 2**20


@pytest.mark.parametrize(
    "flood",
    [
        lambda: Flood(OK, b"Content-Length: 1073741824\r\n\r\n", over_and_over=MEGABYTE),
        lambda: Flood(OK, b"\r\n", over_and_over=MEGABYTE),
        lambda: Flood(
            OK,
            b"Transfer-Encoding: chunked\r\n\r\n",
            over_and_over=b"100000\r\n" + MEGABYTE + b"\r\n",
        ),
        lambda: Flood(
            OK,
            b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            over_and_over=b"100000\r\n" + MEGABYTE + b"\r\n",
            most=4 * FEW,
        ),
        lambda: Flood(OK, b"Content-Length: 0\r\n\r\n", over_and_over=MEGABYTE),
        lambda: Flood(b"HTTP/1.1 204 No Content\r\n\r\n", over_and_over=MEGABYTE),
        lambda: Flood(OK, b"X: ", over_and_over=MEGABYTE),
        lambda: Flood(OK, over_and_over=b"X: y\r\n" * 1000),
        lambda: Flood(over_and_over=b"\0" * 65536),
        lambda: Flood(
            OK + b"Content-Encoding: gzip\r\nContent-Length: 1000000\r\n\r\n",
            gzip.compress(bytes(2**28), compresslevel=9),
        ),
        lambda: Flood(OK, VERDICT_HEADER.encode() + b": ", over_and_over=MEGABYTE),
    ],
    ids=[
        "a gigabyte",
        "no end",
        "chunks",
        "chunks and a length of 0",
        "a length of 0",
        "204",
        "a long header",
        "many headers",
        "zeroes",
        "a bomb",
        "a long verdict",
    ],
)
@pytest.mark.slow
def test_an_answer_without_end_is_not_taken_in(flood: Callable[[], Flood], auth: Any) -> None:
    endpoint = flood()
    with listening(endpoint) as listener:
        send(listener, auth)
        # Nobody reads any more: what is taken from here on lies in the kernel's buffers.
        assert endpoint.taken < FEW


class Trickle:
    """Answers a byte every twentieth of a second, for three seconds at most."""

    def __init__(self, head: bytes, over_and_over: bytes) -> None:
        self.has_ended = threading.Event()
        self.was_hung_up_on = False
        self._head, self._over = head, over_and_over

    def __call__(self, connection: socket.socket) -> None:
        pace = threading.Event()
        try:
            read_request(connection)
            connection.sendall(self._head)
            for number in range(60):
                at = number % len(self._over)
                connection.sendall(self._over[at : at + 1])
                pace.wait(0.05)
        except OSError:
            self.was_hung_up_on = True
        self.has_ended.set()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 204 No Content\r\n"),
        (OK, b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["a status line", "headers", "continue", "chunks"],
)
@pytest.mark.slow
def test_a_byte_at_a_time_is_timed_out(head: bytes, piece: bytes, auth: Any) -> None:
    endpoint = Trickle(head, piece)
    with listening(endpoint) as listener:
        send(listener, auth, timeout=0.3)
        assert endpoint.has_ended.wait(BOUND)
    assert endpoint.was_hung_up_on


def test_silence_is_timed_out(auth: Any) -> None:
    gone = threading.Event()
    with listening(lambda connection: gone.wait(BOUND)) as listener:
        assert "within 0.1 seconds" in str(send(listener, auth, timeout=0.1))
        gone.set()


def test_a_token_sent_back_is_no_verdict(auth: Any) -> None:
    def reflect(connection: socket.socket) -> None:
        _, token = read_request(connection)
        head = f"HTTP/1.1 204 x\r\n{VERDICT_HEADER}: ".encode()
        connection.sendall(head + token + b"\r\nConnection: close\r\n\r\n")

    with listening(reflect) as listener:
        assert "without our endpoint's verdict" in str(send(listener, auth))


def test_an_earlier_verdict_is_no_verdict(auth: Any) -> None:
    app, _ = make_app()
    old = state_of(app).signing.sign_verdict(b"an earlier token", Verdict(Outcome.COMPLETED))

    def repeat_it(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(f"HTTP/1.1 204 x\r\n{VERDICT_HEADER}: {old}\r\n\r\n".encode())

    with listening(repeat_it) as listener:
        assert "without our endpoint's verdict" in str(send(listener, auth))


@pytest.mark.parametrize(
    "verdict", [b"", b".", b"\xff\xfe", b"{}." + b"A" * 43, b"[" * 10_000, b'"\\ud800".x', b"\0"]
)
def test_nonsense_is_no_verdict(verdict: bytes, auth: Any) -> None:
    def answer(connection: socket.socket) -> None:
        read_request(connection)
        head = f"HTTP/1.1 204 x\r\n{VERDICT_HEADER}: ".encode()
        connection.sendall(head + verdict + b"\r\nConnection: close\r\n\r\n")

    with listening(answer) as listener:
        send(listener, auth)


def test_netrc_is_not_asked(auth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login ada password s3cret\ndefault login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    heads: list[bytes] = []

    def note(connection: socket.socket) -> None:
        heads.append(read_request(connection)[0].lower())
        connection.sendall(
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
        )

    with listening(note) as listener:
        send(listener, auth)
    assert [b"authorization" in head for head in heads] == [False]


def test_a_cookie_is_not_kept(auth: Any) -> None:
    """Or whoever once answered there could put one into the fresh requests to come."""
    heads: list[bytes] = []

    def bake(connection: socket.socket) -> None:
        heads.append(read_request(connection)[0].lower())
        answer = b"HTTP/1.1 200 x\r\nSet-Cookie: session=evil; Path=/\r\nContent-Length: 0\r\n"
        connection.sendall(answer + b"Connection: close\r\n\r\n")

    with listening(bake) as listener:
        app, _ = make_app(ASYNC_HOOKS_URL=listener.url, ASYNC_HOOKS_AUTH=auth)
        transport = Loopback(app, state_of(app).config, Address(listener.url))
        for _ in range(2):
            with pytest.raises(TransportError):
                transport.send(E)
    assert [b"cookie" in head for head in heads] == [False, False]


def test_a_visitor_does_not_wait_for_a_silent_endpoint(facts: Facts, action: str) -> None:
    """The view has answered before the endpoint is let go on: its release comes from here."""
    gone = threading.Event()
    with listening(lambda connection: gone.wait(BOUND)) as listener:
        app, hooks = make_app(
            ASYNC_HOOKS_URL=listener.url,
            ASYNC_HOOKS_TRANSPORT="loopback",
            ASYNC_HOOKS_FALLBACK=None,
        )
        task = make_task(hooks, action)
        app.add_url_rule("/", view_func=lambda: task.dispatch({}))
        for _ in range(20):
            assert app.test_client().get("/").status_code == 200
        assert facts.of("failed") == []
        gone.set()
        assert len(facts.wait_for("failed", 20)) == 20
