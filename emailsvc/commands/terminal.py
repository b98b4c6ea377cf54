"""Answers as lines that fit a terminal's width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GAP = "  "
MIN_WRAPPED = 20
"""Columns for what is wrapped, however narrow the terminal is. What has no blank in it is not broken: one copies it."""


def sheet(told: Mapping[str, Any], width: int) -> Iterator[str]:
    """What an answer tells, a name and what it says; then what happened; then each of its lists as a table."""
    yield from _told(list(_facts(told)), width)
    yield from _told(list(_events(told)), width)
    for name, value in told.items():
        if _is_table(value) and name != "timeline":
            yield from table(value, width)


def _told(facts: Sequence[tuple[str, object]], width: int) -> Iterator[str]:
    room = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        for number, line in enumerate(wrapped(shown(value), width - room - len(GAP)) or [""]):
            yield f"{'' if number else name:{room}}{GAP}{line}".rstrip()


def _facts(told: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, object]]:
    """What is empty is left out."""
    for name, value in told.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{within}{name}.")
        elif not _is_table(value) and value not in (None, ""):
            yield f"{within}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value


def _events(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in told.items():
        if isinstance(value, Mapping):
            yield from _events(value)
        elif name == "timeline":
            yield from ((f"{one['at']} {one['event']}", event_words(one)) for one in value)


def _is_table(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)


def event_words(event: Mapping[str, Any]) -> str:
    """The reply has the codes in it."""
    words = [event[name] for name in ("reason", "text", "error") if name in event]
    return ", ".join([*words, f"{event['seconds']} s"] if "seconds" in event else words)


def table(rows: Sequence[Mapping[str, object]], width: int) -> list[str]:
    """Lines of at most ``width`` columns: what is empty in every row is left out, and the widest cells are cut."""
    names = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] if rows else []
    cells = [names, *([shown(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(names))]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and max(widths, default=0) > 1:
        widths[widths.index(max(widths))] -= 1
    return [GAP.join(_fitted(cell, room) for cell, room in zip(line, widths, strict=True)).rstrip() for line in cells]


def wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, MIN_WRAPPED), break_long_words=False, break_on_hyphens=False)


def shown(value: object) -> str:
    """One line, whatever it holds: nothing in it may move the terminal."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _fitted(cell: str, room: int) -> str:
    return cell.ljust(room) if len(cell) <= room else f"{cell[: room - 1]}…"
