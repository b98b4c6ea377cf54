"""Log lines: readable, one line per event, and nothing that a stranger wrote can pass for a line of ours."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emailsvc import log
from emailsvc.log import JsonFormatter, TextFormatter, mask
from emailsvc.settings.config import load

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
FORGED = "2026-01-01T00:00:00.000Z INFO    sent email_id=forged"
LINE_ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def written(formatter: logging.Formatter, message: str, *args: object, **options: Any) -> str:
    """What the handler of a process would write, without the last line's end."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("emailsvc.test")
    logger.addHandler(handler)
    logger.info(message, *args, **options)
    return stream.getvalue().removesuffix("\n")


def text(message: str, *args: object, **fields: Any) -> str:
    return written(TextFormatter(), message, *args, extra={"fields": fields})


def entry(message: str, *args: object, **fields: Any) -> dict[str, Any]:
    line = written(JsonFormatter(), message, *args, extra={"fields": fields})
    assert len(line.splitlines()) == 1
    loaded: dict[str, Any] = json.loads(line)
    return loaded


def starts(written_text: str) -> int:
    """How many events a reader sees: lines that begin with a time."""
    return sum(re.match(STAMP, line) is not None for line in written_text.splitlines())


def test_a_text_line_is_time_level_event_and_pairs() -> None:
    line = text("sent", email_id="order-1", attempt=1, seconds=0.25)
    assert re.fullmatch(rf"{STAMP} INFO    sent email_id=order-1 attempt=1 seconds=0\.25", line)


def test_a_json_line_is_one_object_with_the_same() -> None:
    found = entry("sent", email_id="order-1", attempt=1, seconds=0.25)
    assert re.fullmatch(STAMP, found.pop("at"))
    assert found == {
        "level": "INFO",
        "logger": "emailsvc.test",
        "event": "sent",
        "email_id": "order-1",
        "attempt": 1,
        "seconds": 0.25,
    }


def test_fields_without_a_value_are_left_out() -> None:
    assert text("sent", code=None, reason=None).endswith("sent")
    assert "code" not in entry("sent", code=None)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("", '""'),
        ("a\nb", '"a\\nb"'),
        ("tab\there", '"tab\\there"'),
        ("Grüße", "Grüße"),
        ("\u2028", '"\\u2028"'),
        ("\ud800", '"\\ud800"'),
    ],
)
def test_a_value_that_could_be_misread_is_quoted(value: str, shown: str) -> None:
    assert text("accepted", email_id=value).endswith(f" accepted email_id={shown}")


def test_a_process_without_fields_logs_too() -> None:
    assert re.fullmatch(rf"{STAMP} INFO    hello ada", written(TextFormatter(), "hello %s", "ada"))
    assert json.loads(written(JsonFormatter(), "hello %s", "ada"))["event"] == "hello ada"


@given(st.text())
def test_whatever_a_value_holds_a_text_line_stays_one_line_and_can_be_read_back(value: str) -> None:
    line = text("accepted", email_id=value)
    assert len(line.splitlines()) == 1
    shown = line.partition(" email_id=")[2]
    assert (json.loads(shown) if shown.startswith('"') else shown) == value


@given(st.text())
def test_whatever_a_value_holds_json_carries_it(value: str) -> None:
    assert entry("accepted", email_id=value)["email_id"] == value


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_line_end_in_a_value_forges_no_event(end: str) -> None:
    assert starts(text("accepted", email_id=f"x{end}{FORGED}")) == 1


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_line_end_in_a_message_forges_no_event(end: str) -> None:
    assert starts(text("The connection ended: %s", f"x{end}{FORGED}")) == 1


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_line_end_in_an_exception_forges_no_event(end: str) -> None:
    assert starts(failure(TextFormatter(), f"x{end}{FORGED}")) == 1


@pytest.mark.parametrize("control", ["\x00", "\x07", "\x1b[2J", "\x7f", "\x9b2J", "\u202e"])
def test_nothing_in_a_text_line_moves_a_terminal(control: str) -> None:
    for line in (
        text("accepted", email_id=f"x{control}"),
        text("message with %s", control),
        failure(TextFormatter(), control),
    ):
        assert all(character.isprintable() or character == "\n" for character in line)


def failure(formatter: logging.Formatter, words: str) -> str:
    try:
        raise ValueError(words)
    except ValueError:
        return written(formatter, "transport_raised", extra={"fields": {"email_id": "x"}}, exc_info=True)


def test_an_exception_follows_its_line_as_text_and_is_a_member_in_json() -> None:
    shown = failure(TextFormatter(), "no such thing")
    assert shown.splitlines()[0].endswith("transport_raised email_id=x")
    assert shown.splitlines()[-1].strip() == "ValueError: no such thing"
    line = failure(JsonFormatter(), "no such thing")
    assert len(line.splitlines()) == 1
    assert json.loads(line)["exception"].endswith("ValueError: no such thing")


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("ada.lovelace@example.com", "a…@example.com"),
        ("a@b@example.com", "a…@example.com"),
        ("ü@example.com", "ü…@example.com"),
        ("@example.com", "…@example.com"),
        ("nobody", "…"),
        ("", "…"),
        (None, "…"),
    ],
)
def test_a_masked_address_shows_the_domain_and_no_person(address: str | None, masked: str) -> None:
    assert mask(address) == masked


LOOKED_UP = ("_srcfile", "logThreads", "logMultiprocessing")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was: ``configure`` is meant for a process of our own."""
    loggers = [logging.getLogger(name) for name in ("", "huey", "alembic", "werkzeug")]
    levels, handlers = [logger.level for logger in loggers], loggers[0].handlers[:]
    looked_up = {name: getattr(logging, name) for name in LOOKED_UP}
    yield loggers[0]
    for name, value in looked_up.items():
        setattr(logging, name, value)
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_a_process_logs_to_standard_error_in_one_format(
    root: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(load({"LOG_FORMAT": "json"}, tmp_path))
    logging.getLogger("emailsvc.web").warning("access_denied", extra={"fields": {"code": "bad_token"}})
    logging.getLogger("some.library").warning("odd")
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["access_denied", "odd"]
    log.configure(load({"LOG_FORMAT": "text"}, tmp_path))
    logging.getLogger("emailsvc.web").warning("access_denied", extra={"fields": {"code": "bad_token"}})
    assert capsys.readouterr().err.endswith(" WARNING access_denied code=bad_token\n")


def test_what_no_line_shows_is_not_looked_up(root: logging.Logger, tmp_path: Path) -> None:
    """It took longer than the rest of a line, and there is a line for every e-mail of a batch."""
    log.configure(load({}, tmp_path))
    seen: list[logging.LogRecord] = []
    root.handlers[0].emit = seen.append  # type: ignore[method-assign]
    logging.getLogger("emailsvc.web").info("accepted", extra={"fields": {"email_id": "m-1"}})
    (record,) = seen
    assert (record.threadName, record.processName, record.lineno) == (None, None, 0)
    assert record.process == os.getpid(), "gunicorn's own lines show it"


def test_the_least_level_is_configured_and_the_chatter_of_libraries_stays_out(
    root: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(load({"LOG_LEVEL": "INFO"}, tmp_path))
    logging.getLogger("emailsvc.tasks").debug("swept")
    logging.getLogger("emailsvc.tasks").info("swept")
    for library in ("huey.consumer", "alembic.runtime", "werkzeug"):
        logging.getLogger(library).info("Executing task")
    assert len(capsys.readouterr().err.splitlines()) == 1
    log.configure(load({"LOG_LEVEL": "ERROR"}, tmp_path))
    logging.getLogger("emailsvc.tasks").warning("worker_lost")
    assert capsys.readouterr().err == ""


def test_an_alarming_event_in_an_odd_locale_is_still_written(root: logging.Logger, tmp_path: Path) -> None:
    log.configure(load({}, tmp_path))
    raw = io.BytesIO()
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace", write_through=True))
    logging.getLogger("emailsvc.delivery").warning("dead_lettered", extra={"fields": {"to": mask("ü@example.com")}})
    assert rb"to=\xfc\u2026@example.com" in raw.getvalue()
