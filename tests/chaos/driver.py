"""Drives servers under fire: launches over HTTP, and remembers what was accepted.

A launch is *accepted* once 200 was read to its end; asked for and not answered so, it *may have
been*; rolled back by the app itself, it must *never* have been.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import OperationalError

from async_hooks.outbox.sql import schema
from tests.chaos.effects import metadata as app_metadata
from tests.chaos.launches import Fate, Launch, Strike
from tests.chaos.under_fire import Server, Worker
from tests.support.databases import fresh_database
from tests.support.servers import free_port
from tests.support.waiting import wait_until

#: A short lease, so that tests need not wait for long; beats are a third of it apart.
LEASE = 2.0

#: Seconds within which all that was launched must have come to its end.
BOUND = 60.0


class Chaos:
    """One scenario: its outbox, its servers, and what was asked of them."""

    def __init__(self, folder: Path, kind: str, url: str, seed: int, lease: float) -> None:
        self.folder, self.kind, self.url, self.lease = folder, kind, url, lease
        self.seed, self.random = seed, Random(seed)
        self.launches: dict[int, Launch] = {}
        self.strikes: list[Strike] = []
        self.servers: list[Server] = []
        self.workers: list[Worker] = []
        self.reloads = 0
        self.hold = folder / "hold"
        self._numbers = count(1)
        self._lock = threading.Lock()
        self.engine: Engine = create_engine(url, isolation_level="AUTOCOMMIT")
        if kind != "sqlite":
            schema.metadata.create_all(self.engine)
            app_metadata.create_all(self.engine)
            with self.engine.connect() as connection:
                connection.execute(schema.version.insert().values(version=schema.VERSION))

    def relocate(self, path: Path) -> None:
        """Let the outbox be the SQLite file ``path``."""
        self.url = f"sqlite:///{path}"
        self.engine = create_engine(self.url, isolation_level="AUTOCOMMIT")

    def serve(
        self,
        *,
        workers: int = 2,
        port: int | None = None,
        url: str | None = None,
        options: Sequence[str] = (),
        **environ: str,
    ) -> Server:
        """Start a server; its outbox may be reached by another ``url`` than the scenario's."""
        surroundings = {**self._environ(url), **environ}
        server = Server(self.folder, port or free_port(), workers, options, surroundings)
        self.servers.append(server)
        server.wait_ready()
        return server

    def work(self, number: int = 1, *options: str, **environ: str) -> list[Worker]:
        """Start so many workers, and wait until each has a process at work."""
        surroundings = {**self._environ(), **environ}
        workers = [Worker(self.folder, options, surroundings) for _ in range(number)]
        self.workers += workers

        def are_at_work() -> bool:
            alive = self.processes()
            return all(alive.intersection(worker.children()) for worker in workers)

        wait_until(are_at_work, f"all workers' start: {workers[0].site.log[-3000:]}")
        return workers

    def _environ(self, url: str | None = None) -> dict[str, str]:
        outbox = {"SITE_ASYNC_HOOKS_OUTBOX": url or self.url}
        if self.kind == "app":
            outbox = {
                "SITE_ASYNC_HOOKS_OUTBOX": "app",
                "SITE_SQLALCHEMY_DATABASE_URI": url or self.url,
            }
        return {
            "CHAOS_FOLDER": str(self.folder),
            "SITE_ASYNC_HOOKS_LEASE": str(self.lease),
            "SITE_ASYNC_HOOKS_FALLBACK": "null",
            **outbox,
        }

    # -- launching

    def launch(
        self,
        server: Server,
        action: str = "single",
        *,
        takes: float = 0.0,
        how: str = "",
        times: int = 1,
    ) -> Fate:
        """Ask for ``times`` launches in one request; return what became of it."""
        numbers = self._next(times)
        query = urlencode({"takes": takes, "how": how, "count": times})
        return self._ask(server, f"/launch/{action}/{numbers[0]}?{query}", numbers, action)

    def write(self, server: Server, how: str) -> Fate:
        """Ask for a launch beside a write of the app's own."""
        numbers = self._next(2 if how == "twice" else 1)
        fate = self._ask(server, f"/write/{how}/{numbers[0]}", numbers, "single")
        if how in ("rollback", "savepoint", "forgotten"):
            for number in numbers:
                self.launches[number].fate = Fate.NEVER
        return fate

    def _next(self, times: int) -> list[int]:
        with self._lock:
            return [next(self._numbers) for _ in range(times)]

    def _ask(self, server: Server, path: str, numbers: list[int], action: str) -> Fate:
        for number in numbers:
            self.launches[number] = Launch(number, action, Fate.MAYBE)
        with suppress(OSError, HTTPException):
            status, body = server.door.get(path)
            for number in numbers:
                self.launches[number].status = status
            if status == 200:
                for number, launched in zip(numbers, json.loads(body), strict=True):
                    self.launches[number].ids = [launched]
                    self.launches[number].fate = Fate.ACCEPTED
                return Fate.ACCEPTED
        return Fate.MAYBE

    @contextmanager
    def load(
        self,
        *servers: Server,
        pause: float = 0.1,
        takes: float = 0.05,
        slow: Sequence[tuple[float, float]] = (),
    ) -> Iterator[None]:
        """Launch all the while, single ones and fan-outs, from two threads.

        ``slow`` are the shares of those that take so many seconds instead.
        """
        over = threading.Event()

        def visit(random: Random) -> None:
            while not over.is_set():
                action = "split" if random.random() < 0.25 else "single"
                long = takes * random.uniform(0.2, 3.0)
                for share, seconds in slow:
                    long = seconds if random.random() < share else long
                self.launch(random.choice(servers), action, takes=long)
                over.wait(pause * random.uniform(0.5, 1.5))

        seeds = [self.random.random() for _ in range(2)]
        threads = [threading.Thread(target=visit, args=(Random(seed),)) for seed in seeds]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    # -- looking

    def lines(self, what: str | None = None) -> list[dict[str, Any]]:
        """Return the ledger's lines, of the kind ``what``."""
        path = self.folder / "ledger"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [line for line in map(json.loads, lines) if what is None or line["what"] == what]

    def wait_for(self, what: str, times: int = 1) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.lines(what)) >= times, f"{times} lines of {what!r}")
        return self.lines(what)

    def begin_of(self, number: int) -> dict[str, Any]:
        """Return the first begin of a run of launch ``number``, once there is one."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines("begin") if line["number"] == number]

        first: dict[str, Any] = wait_until(found, f"the run of {number}")[0]
        return first

    def row(self, number: int) -> Any:
        """Return the row of a launch of one receiver, as a mapping; None if there is none."""
        rows = [row for row in self.rows() if json.loads(row.body)["number"] == number]
        return rows[0]._mapping if rows else None

    @property
    def last(self) -> Launch:
        """The launch that was asked for last."""
        return self.launches[max(self.launches)]

    def order_death(self, seam: str) -> None:
        (self.folder / f"die-{seam}").touch()

    def rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(schema.deliveries)).all())

    def processes(self) -> set[int]:
        """Return the pids of the processes that the table, if there is one, takes for alive."""
        with suppress(OperationalError), self.engine.connect() as connection:
            return set(connection.execute(select(schema.processes.c.pid)).scalars())
        return set()

    def wait_quiet(self, bound: float = BOUND) -> float:
        """Wait until nothing is unfinished; return the seconds. Visitors come by meanwhile."""
        began = time.monotonic()
        asked = began
        d = schema.deliveries.c
        unfinished = select(d.id).where(d.finished_at.is_(None)).limit(1)
        while True:
            with self.engine.connect() as connection:
                if connection.execute(unfinished).first() is None:
                    return time.monotonic() - began
            now = time.monotonic()
            if now - began > bound:
                return float("inf")
            if now - asked > 0.5:
                asked = now
                for server in self.servers:
                    server.ask()
            time.sleep(0.05)


@contextmanager
def chaos(
    folder: Path, kind: str = "sqlite", *, seed: int = 0, lease: float = LEASE
) -> Iterator[Chaos]:
    """Open a scenario on a fresh database; ``app`` is the app's own, in PostgreSQL."""
    with ExitStack() as stack:
        database = "postgresql" if kind == "app" else kind
        url = stack.enter_context(fresh_database(database, folder))
        scenario = Chaos(folder, kind, url, seed, lease)
        stack.callback(scenario.engine.dispose)
        try:
            yield scenario
        finally:
            for target in (*scenario.workers, *scenario.servers):
                target.end()
