"""How the tests of an extension serve their app: on gunicorn, and by the worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import answers, free_port
from tests.support.site import READY, Site, gunicorn, running
from tests.support.waiting import BOUND, wait_until


@contextmanager
def served(folder: Path, app: str, **environ: str) -> Iterator[tuple[Site, int]]:
    """Run ``app`` on gunicorn, two processes of eight threads; yield the site and its port."""
    port = free_port()
    options = ("-w", "2", "-k", "gthread", "--threads", "8", "-c", READY)
    command = gunicorn(*options, "-b", f"127.0.0.1:{port}", app=app)
    with running(folder, command, lambda: answers(("127.0.0.1", port)), **environ) as site:
        wait_until(lambda: site.log.count("Worker ready") == 2, "the workers' start")
        yield site, port


def work(folder: Path, app: str, **environ: str) -> int:
    """Return what a worker exits with that delivers all that is due."""
    command = [sys.executable, "-m", "flask", "--app", app, "async-hooks", "worker", "--drain"]
    with Site(folder, command, environ) as worker:
        return worker.process.wait(BOUND)
