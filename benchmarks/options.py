"""What the commands share: each explains itself with its docstring, and runs what can run here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from .system import System


def parser_of(module: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m module``, which explains itself with its docstring."""
    description, _, words = (text or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=words,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def runnable(systems: Iterable[System]) -> list[System]:
    """Return those of ``systems`` that can run here, and say why the others can't."""
    found = []
    for system in systems:
        if (reason := system.missing) is not None:
            print(f"Left out {system.label}: {reason}.", file=sys.stderr)
        else:
            found.append(system)
    return found
