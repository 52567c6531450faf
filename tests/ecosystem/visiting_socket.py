"""The tests' shop with a WebSocket of flask-sock: each message that it gets launches a visit."""

from __future__ import annotations

from typing import Any

from flask_sock import Sock

from tests.support.shop import create_app, visit

app = create_app()
sock = Sock(app)


@sock.route("/socket")  # type: ignore[untyped-decorator]
def listen(socket: Any) -> None:
    while True:
        visit(int(socket.receive()))
        socket.send("launched")
