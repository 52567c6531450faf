"""The long form's rounds: what each does follows from its seed and its database."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from sqlalchemy import make_url

from tests.chaos.driver import Chaos
from tests.chaos.faults import locked, reload
from tests.chaos.killer import rampage
from tests.chaos.proxies import wire
from tests.chaos.under_fire import Server

#: Seconds that a round lasts, without its start and end.
SECONDS = 30.0

#: A run that takes longer is overdue.
_TIMEOUT = "1"

#: Shares of the launches whose receivers are overdue, and of those that hang.
_OVERDUE, _HUNG = (0.03, 3.0), (0.005, 15.0)

#: Seconds that a worker which ends in order lets runs end: those that hang as well.
_GRACE = "20"

DATABASES = ("sqlite", "postgresql", "mariadb", "app")


def go(scenario: Chaos, plan: str | None = None) -> str:
    """Do as ``plan``, or else the round's seed, says until the fault is over; return the plan."""
    plan = plan or plan_of(scenario)
    PLANS[plan](scenario)
    return plan


def plan_of(scenario: Chaos) -> str:
    """Return the round's plan: one in ten is none of killing."""
    other = "locked" if scenario.kind == "sqlite" else "outages"
    plans = ["rampage", "workers", "reloads", other]
    return Random(scenario.seed).choices(plans, weights=[55, 35, 5, 5])[0]


def _rampage(scenario: Chaos) -> None:
    server = scenario.serve(SITE_ASYNC_HOOKS_MAX_CRASHES="1000", SITE_ASYNC_HOOKS_TIMEOUT=_TIMEOUT)
    with scenario.load(server, slow=[_OVERDUE, _HUNG]):
        rampage(scenario, SECONDS, server)


def _workers(scenario: Chaos) -> None:
    """Among those who are struck are workers; the server only adds, or relays as well."""
    relay, number = scenario.random.choice(("true", "false")), scenario.random.choice((1, 2, 8))
    server = scenario.serve(
        SITE_ASYNC_HOOKS_RELAY=relay,
        SITE_ASYNC_HOOKS_MAX_CRASHES="1000",
        SITE_ASYNC_HOOKS_TIMEOUT=_TIMEOUT,
    )
    options = ["--concurrency", "4", *scenario.random.choice(([], ["--max-deliveries", "100"]))]
    workers = scenario.work(
        number,
        *options,
        SITE_ASYNC_HOOKS_MAX_CRASHES="1000",
        SITE_ASYNC_HOOKS_TIMEOUT=_TIMEOUT,
        SITE_ASYNC_HOOKS_GRACE=_GRACE,
    )
    with scenario.load(server, pause=0.2, slow=[_OVERDUE, _HUNG]):
        rampage(scenario, SECONDS, server, *workers)


def _reloads(scenario: Chaos) -> None:
    server = scenario.serve(SITE_ASYNC_HOOKS_TIMEOUT=_TIMEOUT)
    with scenario.load(server, slow=[_OVERDUE]):
        for _ in range(20):
            reload(server)
            scenario.reloads += 1


def _locked(scenario: Chaos) -> None:
    """Another one writes to the file for as long as the round lasts."""
    server = scenario.serve()
    scenario.launch(server, takes=SECONDS / 2, times=4)
    _go_on(scenario, server, 1.0)
    with locked(str(scenario.folder / "outbox.db")):
        _go_on(scenario, server, SECONDS)
    _go_on(scenario, server, 1.0)


def _outages(scenario: Chaos) -> None:
    """The database can't be reached, again and again."""
    url = make_url(scenario.url)
    assert url.port is not None
    with wire(url.port) as carried:
        through = url.set(port=carried.port).render_as_string(hide_password=False)
        server = scenario.serve(url=through)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            _go_on(scenario, server, scenario.random.uniform(0.5, 3))
            carried.cut()
            _go_on(scenario, server, scenario.random.uniform(0.5, 5))
            carried.mend()
        # While what is left is settled, the wire is there.
        scenario.wait_quiet()


def _go_on(scenario: Chaos, server: Server, seconds: float) -> None:
    with scenario.load(server):
        time.sleep(seconds)  # The round's, or the fault's, own duration.


PLANS: dict[str, Callable[[Chaos], None]] = {
    "rampage": _rampage,
    "workers": _workers,
    "reloads": _reloads,
    "locked": _locked,
    "outages": _outages,
}
