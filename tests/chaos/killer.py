"""The random killer: strikes at random, by a seed, while visitors go on launching."""

from __future__ import annotations

import time
from random import Random

from tests.chaos.driver import Chaos
from tests.chaos.faults import frozen, hang_up, kill, kill_group, kill_parent, replace
from tests.chaos.under_fire import Server, Target, Worker

#: What it does, and how often of a hundred times.
WEIGHTS = {"child": 45, "group": 10, "reload": 15, "freeze": 30}


def rampage(chaos: Chaos, seconds: float, *targets: Target) -> None:
    """Strike one of the targets each 0.3 to 1 second."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(chaos.random.uniform(0.3, 1.0))
        strike(chaos, chaos.random.choice(targets))


def strike(chaos: Chaos, target: Target) -> None:
    random = chaos.random
    (act,) = random.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
    children = target.children()
    if act == "group":
        kill_group(chaos, target)
        target.restart()
    elif act == "reload":
        _reload(chaos, target, random)
    elif not children:
        return
    elif act == "child":
        kill(chaos, random.choice(children))
    else:
        pid = random.choice(children)
        with frozen(chaos, pid):
            time.sleep(random.choice((random.uniform(0.1, 1.0), chaos.lease + 2)))
        if random.random() < 0.5:
            time.sleep(random.uniform(0, 0.7))
            kill(chaos, pid)


def _reload(chaos: Chaos, target: Target, random: Random) -> None:
    """End it in order; of a worker, that can also be by the death of its parent."""
    if isinstance(target, Server):
        hang_up(target)
        chaos.reloads += 1
    elif isinstance(target, Worker):
        if random.random() < 0.5:
            replace(target)
            chaos.reloads += 1
        else:
            kill_parent(chaos, target)
            target.restart()
