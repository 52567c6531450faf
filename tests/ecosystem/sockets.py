"""The shop of the server tests, where orders come in by a WebSocket of Flask-Sock."""

from __future__ import annotations

import json
from typing import Any

from flask_sock import Sock

from tests.support.shop import create_app, order

app = create_app()
sock = Sock(app)


@sock.route("/orders")  # type: ignore[untyped-decorator, unused-ignore]
def orders(socket: Any) -> None:
    while True:
        socket.send(json.dumps(order(int(socket.receive()))))
