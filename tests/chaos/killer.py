"""The random killer: strikes at random, by a seed, while visitors go on launching."""

from __future__ import annotations

import time

from driver import Chaos
from faults import frozen, hang_up, kill, kill_group
from under_fire import Server

#: What it does, and how often of a hundred times.
WEIGHTS = {"child": 45, "group": 10, "reload": 15, "freeze": 30}


def rampage(chaos: Chaos, server: Server, seconds: float) -> None:
    """Strike each 0.3 to 1 second."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(chaos.random.uniform(0.3, 1.0))
        strike(chaos, server)


def strike(chaos: Chaos, server: Server) -> None:
    random = chaos.random
    (act,) = random.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
    children = server.children()
    if act == "group":
        kill_group(chaos, server)
        server.restart()
    elif act == "reload":
        hang_up(server)
        chaos.reloads += 1
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
