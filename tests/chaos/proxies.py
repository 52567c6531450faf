"""What stands between: a wire that can be cut, and an imposter that answers for the endpoint."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from async_hooks.signing import VERDICT_HEADER


class Wire:
    """Carries TCP to ``target``; cut, it breaks what is open and refuses what is new.

    Stalled, it stays open, accepts, and carries nothing.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._flows = threading.Event()
        self._flows.set()
        self.port = 0
        self.mend()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def cut(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            if self._listener is not listener:  # Cut meanwhile.
                near.close()
                far.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()  # Its other direction closes the other end.


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    carried = Wire(("127.0.0.1", port))
    try:
        yield carried
    finally:
        carried.cut()


class Imposter(ThreadingHTTPServer):
    """Stands before the endpoint at ``port``: passes POSTs on, or answers them itself.

    ``mode`` is ``pass``, ``html`` (a page with 200), ``bare`` (204, no verdict), ``replay`` (the
    verdict on another POST) or ``swallow`` (passes on, and answers with a page all the same).
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.target = port
        self.mode = "pass"
        self.answered: dict[str, int] = {}
        self.verdict: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _imposter(self) -> Imposter:
        assert isinstance(self.server, Imposter)
        return self.server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        mode = self._imposter.mode
        self._imposter.answered[mode] = self._imposter.answered.get(mode, 0) + 1
        if mode == "pass":
            self._answer(*self._pass_on(body))
        elif mode == "replay":
            self._answer(204, self._imposter.verdict)
        elif mode == "bare":
            self._answer(204, [])
        else:
            if mode == "swallow":
                self._pass_on(body)
            self._answer(200, [("Content-Type", "text/html")], b"<h1>Welcome</h1>")

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]]]:
        connection = HTTPConnection("127.0.0.1", self._imposter.target, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key != "Connection"}
        connection.request("POST", self.path, body, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        ours = [
            pair for pair in response.getheaders() if pair[0] in (VERDICT_HEADER, "Retry-After")
        ]
        self._imposter.verdict = self._imposter.verdict or ours
        return response.status, ours

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes = b"") -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@contextmanager
def imposter(port: int) -> Iterator[Imposter]:
    server = Imposter(port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
