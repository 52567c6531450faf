"""The package holds nothing that makes code or commands out of data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import async_hooks

SOURCES = sorted(Path(async_hooks.__file__).parent.rglob("*.py"))

MODULES = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml",
    "subprocess", "commands", "pty", "code", "codeop", "ctypes", "runpy", "imp", "importlib",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    "system", "popen", "execv", "execve", "execl", "spawnl", "spawnv", "posix_spawn",
    "import_module", "load_source", "Popen",
}  # fmt: skip

#: The worker starts itself anew, with the very arguments that it was started with, and the app's
#: own configuration names modules to import.
MEANT = {
    "supervisor.py": {"posix_spawn"},
    "preparation.py": {"importlib", "import_module"},
}


def offences(source: str) -> Iterator[str]:
    """Name what of ``source`` runs strings, with its line."""
    for node in ast.walk(ast.parse(source)):
        for name in _names(node):
            yield f"{name}, line {getattr(node, 'lineno', 0)}"


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name.partition(".")[0] in MODULES)
    elif isinstance(node, ast.ImportFrom):
        if not node.level and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        yield from (a.name for a in node.names if a.name in METHODS)
    elif isinstance(node, ast.Name) and node.id in CALLS:
        yield node.id
    elif isinstance(node, ast.Attribute):
        if node.attr in METHODS:
            yield node.attr
        elif isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("yaml", "load"):
            yield "yaml.load"
    elif isinstance(node, ast.keyword) and node.arg == "shell":
        yield "shell="


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_in_it_runs_strings(path: Path) -> None:
    found = {offence.partition(",")[0] for offence in offences(path.read_text())}
    assert found == MEANT.get(path.name, set())


def test_all_of_it_is_looked_at() -> None:
    assert {"signing.py", "endpoint.py", "loopback.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import marshal as m",
        "from pickle import loads",
        "from importlib import import_module",
        "def f():\n    import subprocess",
        "eval('1')",
        "run = exec",
        "__import__('os')",
        "os.system('id')",
        "from os import system",
        "yaml.load(text)",
        "run('id', shell=True)",
    ],
)
def test_what_would_run_strings_is_seen(source: str) -> None:
    assert list(offences(source)) != []
