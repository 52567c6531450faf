"""The random killer on each kind of outbox; ``python -m chaos`` is its long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import chaos
from tests.chaos.killer import rampage
from tests.chaos.settling import settled
from tests.support.databases import KINDS

pytestmark = pytest.mark.slow

SECONDS = 5.0


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("kind", [*KINDS, "app"])
def test_a_random_killer_loses_nothing(tmp_path: Path, kind: str, seed: int) -> None:
    with chaos(tmp_path, kind, seed=seed) as scenario:
        server = scenario.serve(SITE_ASYNC_HOOKS_MAX_CRASHES="1000")
        with scenario.load(server):
            rampage(scenario, SECONDS, server)
        report = settled(scenario)
        assert report.strikes
