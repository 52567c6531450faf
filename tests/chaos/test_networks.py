"""Between a relay and the endpoint stands nothing, or somebody else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos.driver import Chaos, chaos
from tests.chaos.proxies import imposter, wire
from tests.chaos.settling import settled
from tests.support.servers import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def attempts(scenario: Chaos) -> set[int]:
    return {row.attempts for row in scenario.rows()}


def test_what_is_refused_waits_until_something_listens(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        port = free_port()
        relay = scenario.serve(workers=1, SITE_ASYNC_HOOKS_URL=f"http://127.0.0.1:{port}")
        scenario.launch(relay, times=5)
        wait_until(lambda: "did not arrive" in relay.site.log, "a refusal")
        assert attempts(scenario) == {0}
        scenario.serve(workers=1, port=port, SITE_ASYNC_HOOKS_RELAY="false")
        assert settled(scenario).duplicates == 0
        assert attempts(scenario) == {1}


@pytest.mark.parametrize("mode", ["html", "bare", "replay"])
def test_an_imposters_answer_uses_no_attempt(tmp_path: Path, mode: str) -> None:
    with chaos(tmp_path) as scenario:
        executor = scenario.serve(workers=1, SITE_ASYNC_HOOKS_RELAY="false")
        with imposter(executor.door.port) as between:
            relay = scenario.serve(workers=1, SITE_ASYNC_HOOKS_URL=between.url)
            scenario.launch(relay)
            wait_until(lambda: scenario.lines("kept"), "a true verdict, for the replay")
            between.mode = mode
            scenario.launch(relay, times=3)
            wait_until(lambda: between.answered.get(mode, 0) >= 2, "the imposter's answers")
            begun = {row.attempts for row in scenario.rows() if row.state != "completed"}
            assert begun == {0}
            between.mode = "pass"
            assert settled(scenario).duplicates == 0
            assert attempts(scenario) == {1}


def test_a_swallowed_verdict_is_known_from_the_table(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        executor = scenario.serve(workers=1, SITE_ASYNC_HOOKS_RELAY="false")
        with imposter(executor.door.port) as between:
            relay = scenario.serve(workers=1, SITE_ASYNC_HOOKS_URL=between.url)
            between.mode = "swallow"
            scenario.launch(relay, times=3)
            assert settled(scenario).duplicates == 0
            assert attempts(scenario) == {1}


def test_a_wire_cut_during_a_run_that_goes_on_runs_nothing_twice(tmp_path: Path) -> None:
    with chaos(tmp_path) as scenario:
        executor = scenario.serve(workers=1)  # Only what has a relay is known to live.
        with wire(executor.door.port) as carried:
            url = f"http://127.0.0.1:{carried.port}"
            relay = scenario.serve(workers=1, SITE_ASYNC_HOOKS_URL=url)
            scenario.hold.touch()
            scenario.launch(relay)
            scenario.begin_of(scenario.last.number)
            carried.cut()
            carried.mend()
            time.sleep(1.5 * scenario.lease)  # Time enough for a second run.
            scenario.hold.unlink()
            assert settled(scenario).duplicates == 0
