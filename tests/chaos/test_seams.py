"""A caller, and a relay apart from the executor, die or freeze at each seam of a delivery's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import Chaos, chaos
from tests.chaos.faults import frozen, note_deaths
from tests.chaos.launches import Fate
from tests.chaos.settling import settled
from tests.chaos.under_fire import Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def apart(scenario: Chaos, *, executor_relays: bool) -> tuple[Server, Server]:
    """Start a server that relays, and another that executes what it sends."""
    relays = "true" if executor_relays else "false"
    executor = scenario.serve(workers=1, SITE_ASYNC_HOOKS_RELAY=relays, CHAOS_IMMORTAL="1")
    relay = scenario.serve(
        workers=1, SITE_ASYNC_HOOKS_URL=executor.url, SITE_ASYNC_HOOKS_CONCURRENCY="1"
    )
    return relay, executor


def record_crash(scenario: Chaos) -> None:
    """Note the death that was ordered, once it has happened."""
    for line in scenario.wait_for("died"):
        note_deaths(scenario, [line["pid"]], f"kill -9 at {line['seam']}")


@pytest.mark.parametrize("kind", ["sqlite", "app"])
@pytest.mark.parametrize("seam", ["before-add", "after-add"])
def test_a_caller_that_dies_at_the_commit_leaves_all_or_nothing(
    tmp_path: Path, kind: str, seam: str
) -> None:
    with chaos(tmp_path, kind) as scenario:
        server = scenario.serve()
        scenario.order_death(seam)
        fate = scenario.write(server, "commit") if kind == "app" else scenario.launch(server)
        assert fate is Fate.MAYBE
        record_crash(scenario)
        report = settled(scenario)
        assert len(scenario.rows()) == report.runs == (seam == "after-add")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb", "app"])
@pytest.mark.parametrize("seam", ["before-close", "in-close", "before-send"])
def test_a_launch_is_finished_once_whoever_dies_between_its_last_receiver_and_its_finish(
    tmp_path: Path, kind: str, seam: str
) -> None:
    with chaos(tmp_path, kind) as scenario:
        server = scenario.serve(workers=2)
        if seam == "before-send":
            scenario.hold.touch()
            scenario.launch(server, action="split")
            scenario.wait_for("begin", 3)
            scenario.order_death(seam)  # The next that is sent is its finish.
            scenario.hold.unlink()
        else:
            scenario.order_death(seam)
            scenario.launch(server, action="split")
        record_crash(scenario)
        settled(scenario)


@pytest.mark.parametrize("executor_relays", [True, False])
@pytest.mark.parametrize("seam", ["before-send", "after-send", "before-settle"])
def test_a_relay_that_dies_at_a_seam_loses_and_doubles_nothing(
    tmp_path: Path, seam: str, executor_relays: bool
) -> None:
    with chaos(tmp_path) as scenario:
        relay, _ = apart(scenario, executor_relays=executor_relays)
        scenario.order_death(seam)
        # Only what did not succeed is left to the relay to write.
        scenario.launch(relay, takes=0.3, how="fail once" if seam == "before-settle" else "")
        record_crash(scenario)
        assert settled(scenario).duplicates == 0


def test_a_frozen_relays_late_verdict_changes_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        relay, _ = apart(scenario, executor_relays=True)
        scenario.hold.touch()
        scenario.launch(relay, how="fail once")
        number = scenario.last.number
        scenario.begin_of(number)
        with frozen(scenario, *relay.children()):
            scenario.hold.unlink()
            wait_until(lambda: scenario.row(number)["state"] == "completed", "the second attempt")
            before = dict(scenario.row(number))
        assert before["attempts"] == 2
        # Its only sender has read the late verdict before it sends this.
        scenario.launch(relay)
        assert settled(scenario).duplicates == 0
        assert dict(scenario.row(number)) == before


def test_a_relay_frozen_during_a_run_costs_nothing(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        relay, _ = apart(scenario, executor_relays=True)
        scenario.hold.touch()
        scenario.launch(relay, times=3)
        number = scenario.wait_for("begin")[0]["number"]
        with frozen(scenario, *relay.children()):
            scenario.hold.unlink()
            wait_until(lambda: scenario.row(number)["state"] == "completed", "the run's end")
            before = dict(scenario.row(number))
        assert settled(scenario).duplicates == 0
        assert dict(scenario.row(number)) == before
