"""What the attacks share: targets, ways to strike them, and listeners that note who connects."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from async_hooks.envelope import Envelope, new_id
from async_hooks.signing import CONTENT_TYPE, VERDICT_HEADER, Signing
from async_hooks.state import state_of
from tests.support.apps import KEY, make_app, make_task
from tests.support.servers import answers, free_port
from tests.support.site import SHOP, Site, gunicorn, running

URL = "/async-hooks/run"

#: Seconds after which what has not happened will not happen.
BOUND = 20.0

#: For sites under attack: what the loopback can't carry is lost and said to be, never run here.
NO_FALLBACK = {"SITE_ASYNC_HOOKS_FALLBACK": "null"}


def signing(key: str | bytes = KEY, *, audience: str = "tests.app") -> Signing:
    """Return what signs for an app called ``audience`` that has ``key``."""
    app = Flask("tests.app")
    app.secret_key = key
    return Signing(app, [audience])


def visit(number: int) -> Envelope:
    """Return an envelope of the shop's task, as the shop itself would launch it."""
    return Envelope(
        id=new_id(), task="tests.support.shop.Visit", body=f'{{"number":{number},"launched_in":0}}'
    )


def shop_token(number: int) -> bytes:
    """Return a fresh token that the shop would run."""
    return signing(audience="tests.support.shop").sign(visit(number), now=time.time())


class Target:
    """An app in this process. ``reached`` notes whatever of it a request reaches."""

    def __init__(self, **config: Any) -> None:
        self.app, self.hooks = make_app(**config)
        self.reached: list[Any] = []
        self.task = make_task(
            self.hooks, "attack", name="t", run_action=lambda _, data: self.reached.append(data)
        )
        self.app.before_request(lambda: self.reached.append("before_request"))
        self.app.register_error_handler(Exception, self._note_error)

    def _note_error(self, error: Exception) -> tuple[str, int]:
        self.reached.append(error)
        return "", 500

    def token(self, envelope: Envelope | None = None, *, age: float = 0) -> bytes:
        envelope = envelope or Envelope(id=new_id(), task="t", body='{"lead":7}')
        return state_of(self.app).signing.sign(envelope, now=time.time() - age)

    def post(self, token: bytes, **kwargs: Any) -> TestResponse:
        kwargs = {"method": "POST", "content_type": CONTENT_TYPE, "data": token, **kwargs}
        with no_connections():
            return self.app.test_client().open(kwargs.pop("path", URL), **kwargs)

    def refuses(self, token: bytes, status: int, **kwargs: Any) -> None:
        """Strike, and see that nothing is reached, learnt or connected to."""
        response = self.post(token, **kwargs)
        told = (response.status_code, response.data, self.reached)
        assert told == (status, b"", []), told
        assert set(dict(response.headers)) <= {"Content-Length", "Content-Type", "Allow"}


@contextmanager
def no_connections() -> Iterator[None]:
    """Fail if this process connects to anything meanwhile."""
    asked: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, lambda _, address: asked.append(address))
        yield
    assert asked == []


class Listener(threading.Thread):
    """Accepts connections, counts them, and lets ``serve`` have each in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], object] | None = None) -> None:
        super().__init__(daemon=True)
        self.connections = 0
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            if self._serve is not None:
                self._serve(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def listening(serve: Callable[[socket.socket], object] | None = None) -> Iterator[Listener]:
    listener = Listener(serve)
    try:
        yield listener
    finally:
        listener.close()


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the head and the body of the POST that comes in."""
    head, _, body = read_until(connection, b"\r\n\r\n").partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received and (chunk := connection.recv(65536)):
        received += chunk
    return received


class Answered(NamedTuple):
    """An answer on the wire; status 0 means that the server only hung up."""

    status: int
    head: str
    body: bytes

    @property
    def has_verdict(self) -> bool:
        return VERDICT_HEADER.lower() in self.head.lower()


def exchange(address: int | str, sent: bytes, *, half_close: bool = False) -> Answered:
    """Send bytes to a port or unix socket, and read until the server hangs up."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(BOUND)
        connection.connect(address if isinstance(address, str) else ("127.0.0.1", address))
        connection.sendall(sent)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:  # The server hung up on bytes that it had not read.
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b" ")[1] if head.startswith(b"HTTP/") else b"0"
    return Answered(int(status), head.decode("latin-1"), body)


def request(
    body: bytes, *headers: str, line: str = f"POST {URL} HTTP/1.1", length: bool = True
) -> bytes:
    """Return the bytes of a request to the endpoint that is right but for what is given."""
    lines = [line, "Host: shop.example", f"Content-Type: {CONTENT_TYPE}", "Connection: close"]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


@contextmanager
def serving(
    folder: Path, *options: str, app: str = SHOP, unix: bool = False, **environ: str
) -> Iterator[tuple[Site, int, str]]:
    """Run the shop on gunicorn; yield the site, its port, and the path of its unix socket."""
    port, path = free_port(), str(folder / "s")
    bind = f"unix:{path}" if unix else f"127.0.0.1:{port}"
    options = options or ("-w", "2", "-k", "gthread", "--threads", "8")
    command = gunicorn(*options, "-b", bind, app=app)
    with ExitStack() as stack:
        is_up = lambda: answers(path if unix else ("127.0.0.1", port))  # noqa: E731
        site = stack.enter_context(running(folder, command, is_up, **{**NO_FALLBACK, **environ}))
        yield site, port, path
