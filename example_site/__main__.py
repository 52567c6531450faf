"""``python -m example_site``: the partner server and the site, until Ctrl-C.

PORT is where the site listens. This process is gunicorn's own: its workers and the partner
server notice when it ends, however that happens.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from subprocess import PIPE, Popen
from threading import Event, Thread

from flask import Flask
from gunicorn.app.base import BaseApplication

from async_hooks import OutboxUnavailable

from . import create_app
from .models import db
from .tasks import hooks


def main() -> None:
    """Run the example.

    :raises SystemExit: with one sentence, if PORT can't be used.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("async_hooks").setLevel(logging.INFO)
    listener = listen(os.environ.get("PORT", "8000"))
    partners = PartnerServer()
    # No proxy that the environment names stands between us.
    os.environ["no_proxy"] = "127.0.0.1"
    app = create_app({"PARTNERS_URL": partners.url})
    renew_tables(app)
    Server(app, listener, partners).run()


def renew_tables(app: Flask) -> None:
    """Delete the outbox's tables that an earlier release of the library has left."""
    with app.app_context():
        try:
            hooks.outbox.check_tables()
        except OutboxUnavailable as error:
            print(error, "This is done now.", sep="\n", file=sys.stderr)
            hooks.outbox.create(recreate=True)
        db.engine.dispose()  # The processes to come have connections of their own.


def listen(port: str) -> socket.socket:
    """Return a socket that listens on ``port``."""
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        sys.exit(f"PORT must be a number from 1 to 65535, not {port!r}.")
    try:
        return socket.create_server(("127.0.0.1", int(port)), backlog=128)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        sys.exit(f"Port {port} can't be used ({why}). Choose another: PORT=8080 make demo")


class PartnerServer:
    """The partner server, as a process of its own. It ends when this one does."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "example_site.partners"]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        self._stopping = Event()
        port = self._process.stdout.readline().strip() if self._process.stdout is not None else ""
        if not port:
            sys.exit("The partner server did not start; its error stands above.")
        self.url = f"http://127.0.0.1:{port}"
        Thread(target=self._report_end, daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        self._process.terminate()
        self._process.wait()

    def _report_end(self) -> None:
        self._process.wait()
        if not self._stopping.is_set():
            text = "The partner server has ended: calls fail until you start the example again."
            print(text, file=sys.stderr, flush=True)


class Server(BaseApplication):  # type: ignore[misc]
    """Gunicorn with two processes of eight threads, serving ``app`` on ``listener``."""

    def __init__(self, app: Flask, listener: socket.socket, partners: PartnerServer) -> None:
        self._app = app
        self._listener = listener
        self._partners = partners
        super().__init__()

    def load_config(self) -> None:
        host, port = self._listener.getsockname()
        options = {
            "bind": f"fd://{self._listener.detach()}",
            "worker_class": "gthread",
            "workers": 2,
            "threads": 8,
            "loglevel": "warning",
            # Calls under way at the end may finish.
            "graceful_timeout": 15,
            "control_socket_disable": True,
            "when_ready": lambda server: announce(f"http://{host}:{port}"),
            "post_worker_init": leave_ctrl_c,
            "on_exit": lambda server: self._partners.stop(),
        }
        for name, value in options.items():
            if name in self.cfg.settings:  # because older releases know no control socket
                self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._app


def leave_ctrl_c(worker: object) -> None:
    # Ctrl-C reaches the workers as well as their master, who then tells them a second time: two
    # signals at once can lock a worker up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def announce(url: str) -> None:
    print(f"\n  The example runs on {url} (stop it with Ctrl-C)\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
