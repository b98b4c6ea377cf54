"""Tables for a terminal."""

from __future__ import annotations

import pytest

from emailsvc.commands.terminal import table

ROWS = [
    {"id": 7, "email_id": "order-1", "resolved_at": None, "error": "RCPT: 550 5.1.1 no such user"},
    {"id": 12, "email_id": "order-22", "resolved_at": None, "error": "two\nlines \x1b[31m"},
]


def test_a_table_is_as_wide_as_what_it_shows_and_leaves_out_what_is_empty() -> None:
    assert table(ROWS, 200) == [
        "id  email_id  error",
        "7   order-1   RCPT: 550 5.1.1 no such user",
        "12  order-22  two�lines �[31m",
    ]


@pytest.mark.parametrize("width", [80, 40, 30, 20])
def test_a_table_fits_the_width_by_cutting_its_widest_cells(width: int) -> None:
    lines = table(ROWS, width)
    assert max(map(len, lines)) <= width
    assert lines[1].startswith("7   order-1" if width >= 30 else "7 ")
    assert ("…" in lines[1]) == (width < 42)


def test_a_table_of_nothing_has_no_line_but_an_empty_one() -> None:
    assert table([], 80) == [""]
