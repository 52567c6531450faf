"""Plain-text tables: words to the left, figures to the right."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    is_figure = [all(_is_figure(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = zip(row, widths, is_figure, strict=True)
        lines.append(
            "  ".join(
                cell.rjust(width) if figure else cell.ljust(width) for cell, width, figure in cells
            )
        )
    return "\n".join(line.rstrip() for line in lines)


def spread(ratios: Sequence[float]) -> str:
    """Return the median, and between what it lies."""
    return f"{median(ratios):.3g} ({min(ratios):.3g}-{max(ratios):.3g})"


def _is_figure(cell: str) -> bool:
    return cell == "-" or cell.lstrip("-").replace(",", "").replace(".", "").isdigit()
