"""Flask-BasicAuth asks every request for a password: a run has the configured one on every way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from async_hooks import AsyncHooks, TransportError
from tests.ecosystem.serving import served, work
from tests.support.apps import make_task, plain_app
from tests.support.services import require_module
from tests.support.site import Site
from tests.support.visitors import Door, Visits, ordering, send_orders
from tests.support.waiting import wait_until

require_module("flask_basicauth")

from flask_basicauth import BasicAuth

APP = "tests.ecosystem.guarded:app"


@dataclass(frozen=True, kw_only=True)
class GuardedDoor(Door):
    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        return super().get(path, {"Authorization": "Basic YWRhOnNlY3JldA==", **(headers or {})})


def filled(site: Site) -> list[str]:
    return sorted(line["id"] for line in site.notes("filled"))


def under_way(site: Site, visits: Visits) -> int:
    return len(visits.accepted) - len(filled(site))


@pytest.mark.slow
def test_runs_by_loopback_and_at_each_reload_have_the_password(tmp_path: Path) -> None:
    with served(tmp_path, APP) as (site, port):
        door = GuardedDoor(port=port)
        with ordering(door, partial(under_way, site)) as visits:
            for turn in range(1, 4):
                wait_until(lambda: len(visits.accepted) >= 60 * turn, "some orders")  # noqa: B023
                site.process.send_signal(signal.SIGHUP)
                wait_until(
                    lambda: site.log.count("Worker ready") == 2 * (turn + 1),  # noqa: B023
                    "new workers",
                )
        wait_until(lambda: under_way(site, visits) <= 0, "the last order")
        assert site.stop() == 0
        assert filled(site) == sorted(visits.accepted)
        assert site.notes("failed") == []


@pytest.mark.slow
def test_runs_that_a_full_queue_leaves_to_the_visitors_thread_have_the_password(
    tmp_path: Path,
) -> None:
    crowded = {"SITE_ASYNC_HOOKS_QUEUE_SIZE": "1", "SITE_ASYNC_HOOKS_CONCURRENCY": "1"}
    with served(tmp_path, APP, **crowded) as (site, port):
        site.hold.touch()
        answers: list[Visits] = []
        visiting = threading.Thread(
            target=lambda: answers.append(send_orders(GuardedDoor(port=port), range(12)))
        )
        visiting.start()
        wait_until(lambda: "runs in the request's own thread" in site.log, "a full queue")
        site.hold.unlink()
        visiting.join()
        assert len(answers[0].accepted) == 36
        wait_until(lambda: filled(site) == sorted(answers[0].accepted), "the last order")
        assert site.notes("failed") == []


@pytest.mark.slow
def test_runs_in_a_worker_have_the_password(tmp_path: Path) -> None:
    outbox = {"SITE_ASYNC_HOOKS_OUTBOX": f"sqlite:///{tmp_path / 'outbox.db'}"}
    with served(tmp_path, APP, SITE_ASYNC_HOOKS_RELAY="false", **outbox) as (site, port):
        visits = send_orders(GuardedDoor(port=port), range(5))
        assert len(visits.accepted) == 15
        assert work(tmp_path, APP, **outbox) == 0
        assert filled(site) == sorted(visits.accepted)


def test_without_the_password_the_error_names_its_key(action: str) -> None:
    app = plain_app(
        ASYNC_HOOKS_TRANSPORT="eager",
        BASIC_AUTH_FORCE=True,
        BASIC_AUTH_USERNAME="ada",
        BASIC_AUTH_PASSWORD="secret",
    )
    BasicAuth(app)
    task: Any = make_task(AsyncHooks(app), action)
    with app.app_context(), pytest.raises(TransportError, match="Set 'ASYNC_HOOKS_AUTH'"):
        task.dispatch({})
