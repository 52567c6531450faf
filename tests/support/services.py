"""Servers that a machine may lack: there a test is skipped, in CI it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError


def require_module(name: str) -> None:
    """Go on only if the Python package ``name`` is installed."""
    if importlib.util.find_spec(name) is None:
        _lacks(f"The package '{name}' is not installed. pip install {name}")


def require_program(name: str, *, beside: str = "") -> str:
    """Return the path of the program ``name``, which may lie in the folder ``beside``."""
    # Debian's administrators' programs lie in /usr/sbin, which is not on every PATH.
    path = os.pathsep.join([beside, os.environ.get("PATH", ""), "/usr/sbin"])
    program = shutil.which(name, path=path)
    if program is None:
        _lacks(f"The program '{name}' is not installed.")
    return program


def require_database(kind: str, engine: Engine) -> Engine:
    """Return ``engine``, if its server answers."""
    try:
        engine.connect().close()
    except DBAPIError:
        _lacks(f"No {kind} answers at {engine.url.host}:{engine.url.port}.")
    return engine


def _lacks(what: str) -> NoReturn:
    if os.environ.get("ASYNC_HOOKS_REQUIRE_SERVICES") == "1":
        pytest.fail(what)
    pytest.skip(what, allow_module_level=True)
