"""The loopback against servers that misbehave; real ones are in tests/servers."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from requests import auth as requests_auth
from werkzeug.test import create_environ

from async_hooks import TokenReplayed, TransportError
from async_hooks.envelope import Envelope
from async_hooks.errors import AddressUnknown, ConnectionBroken, NotConsumed
from async_hooks.receivers import options_of
from async_hooks.state import state_of
from async_hooks.transports.address import Address
from async_hooks.transports.client import Answer
from async_hooks.transports.loopback import Loopback, client_for
from async_hooks.verdict import Outcome, Verdict
from tests.support.apps import make_app
from tests.support.certificates import self_signed

Reply = Callable[[bytes], bytes]


class Server(threading.Thread):
    """Accepts connections and answers each request with what ``reply`` makes of it."""

    def __init__(self, reply: Reply, *, unix: Path | None = None, tls: Any = None) -> None:
        super().__init__(daemon=True)
        self.reply = reply
        self.requests: list[bytes] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self._listener.bind(str(unix) if unix else ("127.0.0.1", 0))
        self._listener.listen()
        self.address = self._listener.getsockname()
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.address[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while request := _read_request(connection):
                self.requests.append(request)
                answer = self.reply(request)
                try:
                    connection.sendall(answer)
                except OSError:
                    return
                if not answer.startswith(b"HTTP/1.1 204"):
                    return

    def close(self) -> None:
        self._listener.close()


def _read_request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(reply: Reply, **kwargs: Any) -> Server:
        servers.append(Server(reply, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def loopback(url: str | None, **config: Any) -> Loopback:
    app, _ = make_app(ASYNC_HOOKS_URL=url, **config)
    state = state_of(app)
    return Loopback(app, state.config, Address(url))


def answering(with_verdict: Loopback) -> Reply:
    """Answer as our endpoint would."""
    signing = state_of(with_verdict._app).signing

    def reply(request: bytes) -> bytes:
        token = request.partition(b"\r\n\r\n")[2]
        text = signing.sign_verdict(token, DONE)
        head = f"HTTP/1.1 204 No Content\r\nAsync-Hooks-Verdict: {text}\r\n"
        return f"{head}Connection: keep-alive\r\n\r\n".encode()

    return reply


DONE = Verdict(Outcome.COMPLETED)

E = Envelope(id="1", task="t", body="{}")

OK_LOGIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlogin"


def test_a_verdict_comes_back(serve: Serve) -> None:
    server = serve(lambda request: b"")
    transport = loopback(server.url)
    server.reply = answering(transport)
    assert transport.send(E) == DONE
    assert server.requests[0].startswith(b"POST /async-hooks/run HTTP/1.1\r\n")


def test_a_connection_is_kept(serve: Serve) -> None:
    server = serve(lambda request: b"")
    transport = loopback(server.url)
    server.reply = answering(transport)
    for _ in range(5):
        transport.send(E)
    assert (len(server.requests), server.connections) == (5, 1)


def test_a_kept_connection_that_the_server_closed_is_opened_anew(serve: Serve) -> None:
    server = serve(lambda request: b"")
    transport = loopback(server.url)
    server.reply = answering(transport)
    transport.send(E)
    connection = transport._threads.client[1]._socket
    connection.shutdown(socket.SHUT_RD)
    assert transport.send(E) == DONE
    assert server.connections == 2


def test_an_idle_connection_is_dropped_after_a_while(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda request: b"")
    transport = loopback(server.url)
    server.reply = answering(transport)
    transport.send(E)
    transport._threads.client[1]._used_at -= 1.6
    transport.send(E)
    assert server.connections == 2


def test_a_unix_socket_is_reached(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    server = serve(lambda request: b"", unix=path)
    transport = loopback(f"http+unix://{str(path).replace('/', '%2F')}/shop")
    server.reply = answering(transport)
    assert transport.send(E) == DONE
    assert server.requests[0].startswith(b"POST /shop/async-hooks/run HTTP/1.1\r\nHost: localhost")


def test_headers_and_basic_auth_are_sent(serve: Serve) -> None:
    server = serve(lambda request: b"")
    transport = loopback(
        server.url, ASYNC_HOOKS_HEADERS={"X-Staging": "1"}, ASYNC_HOOKS_AUTH=("ada", "grün")
    )
    server.reply = answering(transport)
    transport.send(E)
    assert b"X-Staging: 1\r\n" in server.requests[0]
    assert b"Authorization: Basic YWRhOmdyw7xu\r\n" in server.requests[0]


def test_an_auth_object_is_used(serve: Serve) -> None:
    class Bearer(requests_auth.AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = "Bearer x"
            return request

    server = serve(lambda request: b"")
    transport = loopback(server.url, ASYNC_HOOKS_AUTH=Bearer())
    server.reply = answering(transport)
    assert transport.send(E) == DONE
    assert b"Authorization: Bearer x\r\n" in server.requests[0]


def certified(folder: Path) -> tuple[Any, str]:
    """Return a server's context, and the bundle that trusts it."""
    cert, key = self_signed(folder, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, str(cert)


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[Any, str]:
        return certified(tmp_path)

    def test_a_ca_bundle_is_trusted(self, serve: Serve, certificate: tuple[Any, str]) -> None:
        server = serve(lambda request: b"", tls=certificate[0])
        transport = loopback(server.url, ASYNC_HOOKS_VERIFY=certificate[1])
        server.reply = answering(transport)
        for _ in range(3):
            assert transport.send(E) == DONE
        assert server.connections == 1

    def test_an_unknown_certificate_is_refused_before_anything_is_sent(
        self, serve: Serve, certificate: tuple[Any, str]
    ) -> None:
        server = serve(lambda request: b"", tls=certificate[0])
        with pytest.raises(TransportError, match="'ASYNC_HOOKS_VERIFY'") as error:
            loopback(server.url).send(E)
        assert error.value.unsent
        assert server.requests == []

    def test_verification_can_be_switched_off(
        self, serve: Serve, certificate: tuple[Any, str], recwarn: pytest.WarningsRecorder
    ) -> None:
        server = serve(lambda request: b"", tls=certificate[0])
        transport = loopback(server.url, ASYNC_HOOKS_VERIFY=False)
        server.reply = answering(transport)
        assert transport.send(E) == DONE


@pytest.mark.parametrize("auth", [None, requests_auth.HTTPBasicAuth("a", "b")])
class TestFailures:
    """By the lean client and by requests: an auth object wants the latter."""

    def send(self, url: str, auth: Any, **config: Any) -> TransportError:
        with pytest.raises(TransportError) as error:
            loopback(url, ASYNC_HOOKS_AUTH=auth, **config).send(E)
        return error.value

    def test_refused_is_unsent(self, auth: Any) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            error = self.send(f"http://127.0.0.1:{unused.getsockname()[1]}", auth)
        assert error.unsent
        assert "can't be reached" in str(error)

    def test_a_timeout_may_have_arrived(self, auth: Any, serve: Serve) -> None:
        go_on = threading.Event()
        server = serve(lambda request: b"late" * go_on.wait(20))
        error = self.send(server.url, auth, ASYNC_HOOKS_TIMEOUT=0.05)
        go_on.set()
        assert not error.unsent
        assert "gave no verdict within 0.05 seconds" in str(error)

    def test_a_reset_may_have_arrived(self, auth: Any, serve: Serve) -> None:
        error = self.send(serve(lambda request: b"").url, auth)
        assert not error.unsent
        assert "broke before a verdict came" in str(error)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (OK_LOGIN, "answered 200 without our endpoint's verdict"),
            (b"HTTP/1.1 302 Found\r\nLocation: https://x/y\r\n\r\n", "redirects to 'https://x/y'"),
            (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", "Is a login page"),
            (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "another 'SECRET_KEY'"),
            (b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\n\r\n", "'ASYNC_HOOKS_AUTH'"),
            (b"HTTP/1.1 401 No\r\nContent-Length: 5\r\n\r\nlogin", "a login page or a proxy"),
            (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "Another app listens there"),
            (b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", "Raise the request size limit"),
            (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "overloaded"),
            (b"HTTP/1.1 204 Yes\r\nAsync-Hooks-Verdict: {}.x\r\n\r\n", "without our endpoint's"),
        ],
    )
    def test_anything_but_our_verdict_is_a_failure_with_a_remedy(
        self, auth: Any, serve: Serve, answer: bytes, said: str
    ) -> None:
        error = self.send(serve(lambda request: answer).url, auth)
        assert said in str(error)
        assert not error.unsent

    def test_a_redirect_is_not_followed(self, auth: Any, serve: Serve) -> None:
        elsewhere = serve(lambda request: OK_LOGIN)
        answer = f"HTTP/1.1 307 x\r\nLocation: {elsewhere.url}/\r\nContent-Length: 0\r\n\r\n"
        self.send(serve(lambda request: answer.encode()).url, auth)
        assert elsewhere.requests == []

    def test_the_environments_proxies_are_not_asked(
        self, auth: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy = serve(lambda request: OK_LOGIN)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        self.send(serve(lambda request: OK_LOGIN).url, auth)
        assert proxy.requests == []

    def test_nonsense_is_no_answer(self, auth: Any, serve: Serve) -> None:
        self.send(serve(lambda request: b"SSH-2.0-OpenSSH_9.2\r\n\r\n").url, auth)

    def test_an_endless_head_is_given_up(self, auth: Any, serve: Serve) -> None:
        endless = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000
        self.send(serve(lambda request: endless).url, auth)


@pytest.mark.parametrize("auth", [None, requests_auth.HTTPBasicAuth("a", "b")])
def test_a_byte_a_second_is_timed_out(auth: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            for byte in b"HTTP/1.1 204 No Content\r\n" * 1000:
                if done.wait(0.01):
                    return
                connection.send(bytes([byte]))

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    transport = loopback(url, ASYNC_HOOKS_AUTH=auth, ASYNC_HOOKS_TIMEOUT=0.2)
    with pytest.raises(TransportError, match="gave no verdict within"):
        transport.send(E)
    done.set()
    thread.join()
    listener.close()


class TestAddress:
    def learnt(self, environ: dict[str, Any]) -> Address:
        address = Address(None)
        address.observe(environ)
        return address

    def test_a_configured_one_stays(self) -> None:
        address = Address("http://app:8000")
        with socket.create_server(("127.0.0.1", 0)) as server:
            address.observe({"gunicorn.socket": server})
        assert address.url == "http://app:8000"

    @pytest.mark.parametrize("key", ["gunicorn.socket", "werkzeug.socket"])
    def test_the_servers_socket_tells(self, key: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            address = self.learnt({key: server, "SCRIPT_NAME": "", "HTTP_HOST": "evil"})
        assert address.url == f"http://127.0.0.1:{port}"

    def test_a_unix_socket_tells(self, tmp_path: Path) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "s"))
        with server:
            assert self.learnt({"gunicorn.socket": server}).url == (
                f"http+unix://{str(tmp_path).replace('/', '%2F')}%2Fs"
            )

    def test_an_ipv6_socket_tells(self) -> None:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            port = server.getsockname()[1]
            assert self.learnt({"gunicorn.socket": server}).url == f"http://[::1]:{port}"

    @pytest.mark.parametrize(
        ("script_name", "original", "forwarded", "guesses"),
        [
            ("/a", None, None, ["/a", ""]),
            ("/de", "", "/de", ["", "/de"]),
            ("/de/a", "", "/de", ["/a", "/de/a", ""]),
            ("/a/de", "/a", "/de", ["/a/de", "/a", ""]),
            ("/evil", "", None, ["/evil", ""]),
        ],
    )
    def test_a_path_that_a_client_may_have_named_is_a_guess(
        self, script_name: str, original: str | None, forwarded: str | None, guesses: list[str]
    ) -> None:
        environ: dict[str, Any] = {"SCRIPT_NAME": script_name}
        if original is not None:
            environ["werkzeug.proxy_fix.orig"] = {"SCRIPT_NAME": original}
        if forwarded is not None:
            environ["HTTP_X_FORWARDED_PREFIX"] = forwarded
        with socket.create_server(("127.0.0.1", 0)) as server:
            base = f"http://127.0.0.1:{server.getsockname()[1]}"
            address = self.learnt({"gunicorn.socket": server, **environ})
        assert address.url is None
        assert address.guesses() == [base + root for root in guesses]

    @pytest.mark.parametrize("server", ["waitress", "uwsgi"])
    def test_another_servers_port_is_a_guess_only(self, server: str) -> None:
        environ = {"SERVER_PORT": "443", "werkzeug.proxy_fix.orig": {"SERVER_PORT": "8080"}}
        environ["uwsgi.version" if server == "uwsgi" else "SERVER_SOFTWARE"] = server
        address = self.learnt(environ)
        assert (address.url, address.guesses()) == (None, ["http://127.0.0.1:8080"])

    @pytest.mark.parametrize("header", ["X_FORWARDED_HOST", "X_FORWARDED_PORT", "FORWARDED"])
    def test_a_port_that_a_client_may_have_named_is_no_guess(self, header: str) -> None:
        environ = {"SERVER_SOFTWARE": "waitress", "SERVER_PORT": "6379", f"HTTP_{header}": "x"}
        assert not self.learnt(environ).may_be_known

    def test_guesses_that_do_not_answer_give_way_to_others(self) -> None:
        address = self.learnt({"SERVER_SOFTWARE": "waitress", "SERVER_PORT": "1"})
        address.refute()
        address.observe({"SERVER_SOFTWARE": "waitress", "SERVER_PORT": "2"})
        assert address.guesses() == []
        address._refuted_at -= 31
        assert address.guesses() == ["http://127.0.0.1:2"]

    def test_the_test_client_tells_nothing(self) -> None:
        assert not self.learnt(create_environ()).may_be_known

    @pytest.mark.parametrize("port", [8080, "8080"])
    def test_a_server_need_not_name_itself(self, port: object) -> None:
        assert self.learnt({"SERVER_PORT": port}).guesses() == ["http://127.0.0.1:8080"]

    @pytest.mark.parametrize("port", [0, "0", None, ""])
    def test_a_unix_socket_has_no_port(self, port: object) -> None:
        assert not self.learnt({"SERVER_PORT": port}).may_be_known


class TestGuess:
    def transport(self, server: Server) -> Loopback:
        app, _ = make_app()
        address = Address(None)
        address.observe({"SERVER_SOFTWARE": "waitress", "SERVER_PORT": str(server.address[1])})
        return Loopback(app, state_of(app).config, address)

    def test_is_believed_after_a_signed_ping_came_back(self, serve: Serve) -> None:
        server = serve(lambda request: b"")
        transport = self.transport(server)
        server.reply = answering(transport)
        transport.send(E)
        transport.send(E)
        tasks = [request.partition(b'"task":"')[2].split(b'"')[0] for request in server.requests]
        assert tasks == [b"async_hooks.ping", b"t", b"t"]

    def test_another_app_is_told_nothing(self, serve: Serve) -> None:
        server = serve(lambda request: OK_LOGIN)
        transport = self.transport(server)
        for _ in range(2):
            with pytest.raises(AddressUnknown, match="'ASYNC_HOOKS_URL' is not set"):
                transport.send(E)
        assert len(server.requests) == 1
        assert b"async_hooks.ping" in server.requests[0]


def test_nothing_known_is_an_unknown_address() -> None:
    with pytest.raises(AddressUnknown, match="'ASYNC_HOOKS_URL' is not set") as error:
        loopback(None).send(E)
    assert error.value.unsent


def test_an_answer_is_parsed_leniently_where_that_is_harmless(serve: Serve) -> None:
    server = serve(lambda request: b"HTTP/1.1 204\r\nX-A:b\r\nx-c :  d \r\n\r\n")
    app, _ = make_app()
    answer = client_for(f"{server.url}/x", state_of(app).config).post(b"x", 5, lambda: None)
    assert answer == Answer(204, {"x-a": "b", "x-c": "d"})


def test_the_timeout_is_the_receivers_the_tasks_or_the_configured(action: str) -> None:
    from tests.support.apps import make_task

    app, hooks = make_app(ASYNC_HOOKS_TIMEOUT=7)
    make_task(hooks, action, name="plain")
    make_task(hooks, action, name="slow", timeout=60)
    hooks.receiver(action, name="slower", timeout=90)(lambda sender: None)
    hooks.receiver(action, name="other")(lambda sender: None)

    def of(envelope: Envelope) -> float:
        return options_of(state_of(app), envelope).timeout

    assert of(Envelope(id="1", task="plain", body="{}")) == 7
    assert of(Envelope(id="1", task="slow", body="{}")) == 60
    assert of(Envelope(id="1", task="slow", body="{}", receiver="slower")) == 90
    assert of(Envelope(id="1", task="slow", body="{}", receiver="other")) == 60
    assert of(Envelope(id="1", task="unknown", body="{}")) == 7


def test_the_only_receivers_timeout_is_the_tasks(action: str) -> None:
    from tests.support.apps import make_task

    app, hooks = make_app()
    make_task(hooks, action, name="t", timeout=60)
    hooks.receiver(action, timeout=90)(lambda sender: None)
    assert options_of(state_of(app), Envelope(id="1", task="t", body="{}")).timeout == 90


def own(server: Server, **config: Any) -> Loopback:
    """Return a loopback to a server that is this process's own."""
    transport = loopback(server.url, **config)
    transport._address.is_own = True
    return transport


def test_what_breaks_before_it_was_begun_is_safe_to_send_again(serve: Serve) -> None:
    with pytest.raises(NotConsumed, match="broke before a verdict came"):
        own(serve(lambda request: b"")).send(E)


def test_what_breaks_after_it_was_begun_is_not(serve: Serve) -> None:
    server = serve(lambda request: b"")
    transport = own(server)
    replay_guard = state_of(transport._app).replay_guard

    def begin_and_die(request: bytes) -> bytes:
        token = request.partition(b"\r\n\r\n")[2]
        replay_guard.consume(token, json.loads(token.rpartition(b".")[0])["iat"])
        return b""

    server.reply = begin_and_die
    with pytest.raises(ConnectionBroken):
        transport.send(E)


@pytest.mark.parametrize("auth", [None, requests_auth.HTTPBasicAuth("a", "b")])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_stop_takes_back_what_was_not_begun(
    serve: Serve, auth: Any, scheme: str, tmp_path: Path
) -> None:
    tls, config = None, {"ASYNC_HOOKS_AUTH": auth}
    if scheme == "https":
        tls, config["ASYNC_HOOKS_VERIFY"] = certified(tmp_path)
    posted, go_on = threading.Event(), threading.Event()

    def never(request: bytes) -> bytes:
        posted.set()
        go_on.wait(20)
        return b""

    transport = own(serve(never, tls=tls), **config)
    raised: list[BaseException] = []

    def send() -> None:
        try:
            transport.send(E)
        except TransportError as error:
            raised.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    assert posted.wait(20)
    transport.cancel_unstarted()
    thread.join(20)
    assert not thread.is_alive()
    go_on.set()
    assert [type(error) for error in raised] == [NotConsumed]
    with pytest.raises(NotConsumed):
        transport.send(E)


def test_a_stop_leaves_what_has_begun(serve: Serve) -> None:
    begun, go_on = threading.Event(), threading.Event()
    server = serve(lambda request: b"")
    transport = own(server)
    done = answering(transport)
    replay_guard = state_of(transport._app).replay_guard

    def run(request: bytes) -> bytes:
        token = request.partition(b"\r\n\r\n")[2]
        replay_guard.consume(token, json.loads(token.rpartition(b".")[0])["iat"])
        begun.set()
        go_on.wait(20)
        return done(request)

    server.reply = run
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(transport.send(E)))
    thread.start()
    assert begun.wait(20)
    transport.cancel_unstarted()
    go_on.set()
    thread.join(20)
    assert verdicts == [DONE]


def test_a_server_that_does_not_say_keep_alive_is_not_believed_to(serve: Serve) -> None:
    server = serve(lambda request: b"")
    transport = loopback(server.url)
    keeping = answering(transport)
    server.reply = lambda request: keeping(request).replace(b"Connection: keep-alive\r\n", b"")
    for _ in range(3):
        transport.send(E)
    assert server.connections == 3


def test_what_a_stop_takes_back_is_a_replay_to_the_endpoint(serve: Serve) -> None:
    tokens: list[bytes] = []
    go_on = threading.Event()

    def late(request: bytes) -> bytes:
        tokens.append(request.partition(b"\r\n\r\n")[2])
        go_on.wait(20)
        return b""

    transport = own(serve(late))
    transport.cancel_unstarted()
    with pytest.raises(NotConsumed):
        transport.send(E)
    go_on.set()
    [token] = tokens
    with pytest.raises(TokenReplayed):
        state_of(transport._app).replay_guard.consume(
            token, json.loads(token.rpartition(b".")[0])["iat"]
        )


@pytest.mark.parametrize("auth", [None, requests_auth.HTTPBasicAuth("a", "b")])
def test_an_answer_that_is_long_in_coming_arrives(serve: Serve, auth: Any) -> None:
    server = serve(lambda request: b"")
    transport = loopback(server.url, ASYNC_HOOKS_AUTH=auth)
    done = answering(transport)
    checked = threading.Event()

    def slow(request: bytes) -> bytes:
        checked.wait(20)
        return done(request)

    server.reply = slow
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loopback, "_check", lambda self, post: checked.set())
        assert transport.send(E) == DONE
    assert checked.is_set()
