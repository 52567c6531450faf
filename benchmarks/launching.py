"""Launching: many accepted at once, before something is done to them or to who runs them."""

from __future__ import annotations

from .client import closed_loop
from .server import THREADS, Site

#: Launches that one request makes.
_PER_REQUEST = 10


def launch(site: Site, launches: int) -> range:
    """Have so many accepted as soon as can be; return their numbers."""
    first = site.launched
    paths = site.triggers(-(-launches // _PER_REQUEST), _PER_REQUEST)
    closed_loop(site.port, paths, connections=THREADS)
    return range(first, site.launched)


def warm_up(site: Site) -> None:
    """Let every thread and worker be there, and everything be imported."""
    launch(site, 2 * THREADS * _PER_REQUEST)
    site.ends.wait(site.launched, patience=20.0)
