"""Print what a command found, as JSON or in words, with every control character escaped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import click

from ..log import one_line

#: Columns that a longer last cell needs at least to stay on its row's first line.
_LEAST = 40


class Stderr(str):
    """A line for standard error."""

    __slots__ = ()


class Table(NamedTuple):
    """Rows in aligned columns. In a narrow terminal, the first ``head`` cells get their own line.

    ``is_cut`` says that a line may end with "..." where the terminal ends.
    """

    rows: Sequence[Sequence[str]]
    head: int
    is_cut: bool = False


def show(found: Any, words: Callable[[Any], Iterable[str | Table]], as_json: bool) -> None:
    """Print ``found``, made of dicts, lists and times, as JSON, or what ``words`` makes of it."""
    if as_json:
        click.echo(json.dumps(found, default=datetime.isoformat))
        return
    for part in words(found):
        if isinstance(part, Table):
            for line in _lines(part):
                say(line)
        else:
            say(part, err=isinstance(part, Stderr))


def say(text: str, *, err: bool = False) -> None:
    """Print one line."""
    click.echo(one_line(text.rstrip()), err=err)


def counted(number: int, which: str = "") -> str:
    return f"1 {which}delivery" if number == 1 else f"{number} {which}deliveries"


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} seconds"


def to_the_second(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _lines(table: Table) -> Iterator[str]:
    rows = [[one_line(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if table.is_cut:
        widths[-1:] = [min(width, _LEAST) for width in widths[-1:]]
    terminal = shutil.get_terminal_size((0, 0)).columns  # 0: no terminal, and no limit.
    is_narrow = 0 < terminal < sum(width + 2 for width in widths if width) - 2
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width]
        lines = ["  ".join(cells).rstrip()]
        if is_narrow:
            tail = "  ".join(filter(None, row[table.head :]))
            lines = ["  ".join(cells[: table.head]).rstrip(), *([f"    {tail}"] if tail else [])]
        for line in lines:
            is_long = table.is_cut and 0 < terminal < len(line)
            yield f"{line[: terminal - 3]}..." if is_long else line
