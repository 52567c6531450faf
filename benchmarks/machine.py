"""Where a run was made: the machine, and what was installed on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from .system import System

_SOFTWARE = ("Flask", "Werkzeug", "blinker", "itsdangerous", "gunicorn")


def machine() -> str:
    """Say in one line where this runs, and how busy it was when asked."""
    model = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, load {load}"


def versions(systems: Iterable[System]) -> dict[str, str]:
    needed = [package for system in systems for package in system.packages]
    names = dict.fromkeys((*_SOFTWARE, *needed))
    return {"Python": platform.python_version(), **{name: version(name) for name in names}}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
