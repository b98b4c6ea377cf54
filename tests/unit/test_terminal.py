"""Tables for a terminal."""

from __future__ import annotations

import pytest

from emailsvc.commands.terminal import sheet, table

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


ANSWER = {
    "id": 7, "resolved_at": None, "filter": {"code": 550, "ids": [1, 2]}, "error": "550 5.1.1 no such user here",
    "timeline": [
        {"at": "08:00", "event": "received"},
        {"at": "08:01", "event": "rejected", "code": 550, "text": "550 5.1.1 no such user here", "started_at": "08:01"},
        {"at": "08:02", "event": "sent", "text": "250 ok", "seconds": 0.08},
    ],
}  # fmt: skip


def test_an_answer_is_a_line_for_each_thing_it_tells_wrapped_where_it_does_not_fit() -> None:
    assert list(sheet(ANSWER, 40)) == [
        "id           7",
        "filter.code  550",
        "filter.ids   1, 2",
        "error        550 5.1.1 no such user here",
        "08:00 received",
        "08:01 rejected  550 5.1.1 no such user",
        "                here",
        "08:02 sent      250 ok, 0.08 s",
    ]


def test_an_answer_s_lists_are_tables_below_it() -> None:
    assert list(sheet({"total": 2, "groups": [{"code": 550, "count": 3}]}, 40)) == [
        "total  2",
        "code  count",
        "550   3",
    ]
