"""Rows as a table that fits a terminal's width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GAP = "  "


def table(rows: Sequence[Mapping[str, object]], width: int) -> list[str]:
    """Lines of at most ``width`` columns: what is empty in every row is left out, and the widest cells are cut."""
    names = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] if rows else []
    cells = [names, *([shown(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(names))]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and max(widths, default=0) > 1:
        widths[widths.index(max(widths))] -= 1
    return [GAP.join(_fitted(cell, room) for cell, room in zip(line, widths, strict=True)).rstrip() for line in cells]


def shown(value: object) -> str:
    """One line, whatever it holds: nothing in it may move the terminal."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _fitted(cell: str, room: int) -> str:
    return cell.ljust(room) if len(cell) <= room else f"{cell[: room - 1]}…"
