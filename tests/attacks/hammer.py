"""What strangers at the endpoint cost the visitors of the same site.

``python -m tests.attacks.hammer`` starts the shop on gunicorn (two
gthread workers) and a process of strangers. Round after round it measures the p95 of a visitor who
launches a task in each request: alone, while strangers ask at a page that does not exist, and
while they hammer the endpoint in each way below, at the same rate. The first ratio is to the quiet
time: what a visitor feels. The second is to the missing page: what the endpoint adds to being
asked at all. The strangers' client takes its share of the same machine's processors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.attacks.attacking import exchange, request, serving, shop_token

_REPLAYED = shop_token(0)
_CONNECTIONS = 4
_GOAL = 1.3

#: By name, the bytes that a stranger sends.
ATTACKS: dict[str, Callable[[], bytes]] = {
    "missing page": lambda: request(b"no token", line="POST /missing HTTP/1.1"),
    "no token": lambda: request(b""),
    "nonsense": lambda: request(os.urandom(400)),
    "forged": lambda: request(shop_token(0)[:-1] + b"_"),
    "GET": lambda: request(b"", line="GET /async-hooks/run HTTP/1.1"),
    "too large": lambda: request(b"x", "Content-Length: 99999999", length=False),
    "100 kB": lambda: request(b"x" * 100_000),
    "replayed": lambda: request(_REPLAYED),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.hammer", description=__doc__)
    parser.add_argument("--rate", type=int, default=100, help="strangers' requests a second")
    parser.add_argument("--visits", type=int, default=100, help="visits in each series")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (_, port, _):
        exchange(port, request(_REPLAYED))
        _p95(port, options.visits)
        figures: dict[str, list[float]] = {"quiet": [], **{name: [] for name in ATTACKS}}
        for _ in range(options.rounds):
            figures["quiet"].append(_p95(port, options.visits))
            for name in ATTACKS:
                with strangers(port, name, options.rate):
                    figures[name].append(_p95(port, options.visits))
    report(figures, options.rate)
    return 0


def report(figures: dict[str, list[float]], rate: int) -> None:
    """Print, for each attack, the p95 and its ratios, each the median over the rounds."""
    print(f"strangers: {rate} requests a second; goal: {_GOAL} x")
    print(f"{'':14}{'p95':>10}{'to quiet':>10}{'to missing':>12}")
    for name, times in figures.items():
        to_quiet = _ratio(times, figures["quiet"])
        to_missing = _ratio(times, figures["missing page"])
        print(f"{name:14}{median(times) * 1000:>7.2f} ms{to_quiet:>10.2f}{to_missing:>12.2f}")


def _ratio(times: list[float], to: list[float]) -> float:
    return median(one / other for one, other in zip(times, to, strict=True))


def _p95(port: int, visits: int) -> float:
    """Return the 95th percentile of a visitor's waits, in seconds."""
    waits = []
    for number in range(visits):
        line = f"GET /visit/{number} HTTP/1.1"
        started = time.perf_counter()
        status = exchange(port, request(b"", line=line, length=False)).status
        waits.append(time.perf_counter() - started)
        if status != 200:
            sys.exit(f"A visitor was answered {status}.")
        time.sleep(0.01)
    return sorted(waits)[len(waits) * 95 // 100]


@contextmanager
def strangers(port: int, name: str, rate: int) -> Iterator[None]:
    """Let strangers hammer, from a process of their own, until the block ends."""
    context = multiprocessing.get_context("spawn")
    ready, over = context.Event(), context.Event()
    process = context.Process(target=_hammer, args=(port, name, rate, ready, over), daemon=True)
    process.start()
    try:
        ready.wait(30)
        yield
    finally:
        over.set()
        process.join(30)


def _hammer(port: int, name: str, rate: int, ready: threading.Event, over: threading.Event) -> None:
    make = ATTACKS[name]
    sent = make()

    def one() -> None:
        due = time.monotonic()
        while not over.is_set():
            due += _CONNECTIONS / rate
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                exchange(port, sent)
            except OSError:
                continue
            ready.set()

    threads = [threading.Thread(target=one, daemon=True) for _ in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def dawdle(port: int, count: int) -> list[socket.socket]:
    """Return connections that each promise a token, send half of it and say no more."""
    connections = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request(shop_token(0))[:-20])
        connections.append(connection)
    return connections


if __name__ == "__main__":
    sys.exit(main())
