"""The three partners' APIs, as one small server of their own: slow, unreliable, and quick.

``python -m example_site.partners`` prints the port that it listens on, and lives until its input
ends: when whoever started it ends, however that happens.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
from collections import Counter
from threading import Lock, Thread
from time import sleep

from flask import Flask, abort, request
from werkzeug.serving import make_server

#: Each is also read from the environment, where its name begins with ``EXAMPLE_``.
DEFAULTS = {
    "CRM_SECONDS": 5,
    "NEWSLETTER_SECONDS": 0.8,
    "SALES_SECONDS": 0.2,
    # How often the newsletter fails; a whole number: its first so many calls for each lead.
    "NEWSLETTER_FAILS": 0.5,
}


def create_partners() -> Flask:
    """Return the app that plays all three."""
    app = Flask(__name__)
    app.config.from_mapping(DEFAULTS)
    app.config.from_prefixed_env("EXAMPLE")
    config, calls, lock = app.config, Counter[int](), Lock()

    @app.post("/crm")
    def crm() -> dict[str, bool]:
        sleep(config["CRM_SECONDS"])
        return {"accepted": True}

    @app.post("/newsletter")
    def newsletter() -> dict[str, bool]:
        sleep(config["NEWSLETTER_SECONDS"])
        if fails(request.get_json()["id"]):
            abort(503)
        return {"accepted": True}

    @app.post("/sales")
    def sales() -> dict[str, bool]:
        sleep(config["SALES_SECONDS"])
        return {"accepted": True}

    def fails(lead_id: int) -> bool:
        with lock:
            calls[lead_id] += 1
        rate: float = config["NEWSLETTER_FAILS"]
        return calls[lead_id] <= rate if isinstance(rate, int) else random.random() < rate

    return app


def main() -> None:
    # Ctrl-C reaches this process too; calls under way may end before it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = make_server("127.0.0.1", port, create_partners(), threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
