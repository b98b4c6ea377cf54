"""What the commands print: for people on a terminal, for programs in a pipe and with --json."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from flask import Flask
from sqlalchemy import Engine

from emailsvc import outbox, reports
from emailsvc.commands.base import Printing
from emailsvc.commands.start import run_everything
from emailsvc.settings.config import Config
from tests.emails import DEFERRED, REJECTED, SENT, accept, claim, record
from tests.factories import new_email
from tests.integration.test_cli import Flasks, run, shown, sqlite_only
from tests.stack import ROOT


@pytest.fixture(autouse=True)
def _not_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "false")  # the program sets it, and it must not stay


@pytest.fixture
def flask(app: Flask) -> Flasks:
    return lambda *words: run(app, *words)


def in_a_process(tmp_path: Path, config: Config, *words: str, pipe: str = "", columns: int = 80) -> tuple[str, str]:
    """Standard output and error of a command on a terminal, but for the ``pipe`` of the two."""
    read, write = zip(*(os.pipe() if name == pipe else pty.openpty() for name in ("stdout", "stderr")), strict=True)
    program = [sys.executable, "-m", "flask", "--app", str(ROOT / "wsgi.py"), *words]
    environ = {**os.environ, "DATABASE_URL": config.database_url, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)}
    environ |= {"LOG_LEVEL": "ERROR", "TERM": "xterm"}
    done = subprocess.run(program, cwd=tmp_path, env=environ, stdout=write[0], stderr=write[1], timeout=60)
    said = tuple(map(_all_of, read, write))
    for descriptor in (*read, *write):
        os.close(descriptor)
    assert done.returncode == 0, said
    return said[0], said[1]


def _all_of(read: int, write: int) -> str:
    os.write(write, b"end")
    told = b""
    while not told.endswith(b"end"):
        told += os.read(read, 10_000)
    return told.decode().removesuffix("end").replace("\r\n", "\n")


@pytest.fixture
def _stored(engine: Engine, config: Config) -> None:
    outbox.accept(engine, new_email("m-1", subject="A long subject " * 5), config)
    record(engine, config, claim(engine, config), REJECTED)
    accept(engine, config, "m-2")
    record(engine, config, claim(engine, config), SENT)
    accept(engine, config, "m-3")
    record(engine, config, claim(engine, config), DEFERRED)
    accept(engine, config, "m-4")
    outbox.pause(engine, "moving", who="ada")


@sqlite_only
@pytest.mark.usefixtures("_stored")
@pytest.mark.parametrize("words", [("emails", "list"), ("dead-letters", "list"), ("actions",)])
def test_a_terminal_gets_a_table_that_fits(config: Config, tmp_path: Path, words: tuple[str, ...]) -> None:
    heads, *lines = in_a_process(tmp_path, config, *words, columns=60)[0].splitlines()
    assert len(lines) == {"emails": 4}.get(words[0], 1)
    assert max(map(len, [heads, *lines])) <= 60
    assert "{" not in heads


@sqlite_only
@pytest.mark.usefixtures("_stored")
def test_a_terminal_gets_one_thing_with_a_line_for_each_that_it_tells(config: Config, tmp_path: Path) -> None:
    out, _ = in_a_process(tmp_path, config, "dead-letters", "show", "1")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["id", "1"]
    assert [line.split(None, 2)[1:] for line in lines if line.startswith("20")][-1] == [
        "dead_lettered", f"rejected, {REJECTED.reply}",
    ]  # fmt: skip
    assert not [line for line in lines if "{" in line or "null" in line or "None" in line]


@sqlite_only
@pytest.mark.usefixtures("_stored")
def test_a_pipe_gets_json_where_a_terminal_gets_a_table(config: Config, tmp_path: Path) -> None:
    for words, pipe in ((("emails", "show", "m-2"), "stdout"), (("emails", "show", "m-2", "--json"), "")):
        told = json.loads(in_a_process(tmp_path, config, *words, pipe=pipe)[0])
        assert [event["event"] for event in told["timeline"]] == ["received", "sent"]


@sqlite_only
@pytest.mark.usefixtures("_stored")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("emails", "send", "--state", "pending", "--dry-run"), {"matching": 2, "made_due": 1, "already_due": 1}),
        (("emails", "send", "m-3"), {"email_id": "m-3", "state": "pending"}),
        (("dead-letters", "replay", "--code", "550", "--dry-run"), {"matching": 1, "would_move": 1}),
        (("dead-letters", "replay", "--code", "550"), {"replayed": 1}),
        (("dead-letters", "replay", "--code", "550", "--rate", "1"), {"kind": "replayed", "total": 1}),
        (("dead-letters", "discard", "1"), {"id": 1, "email_id": "m-1", "resolution": "discarded"}),
        (("dead-letters", "delivered", "1"), {"id": 1, "resolution": "delivered"}),
        (("erase", "m-1@example.com"), {"erased": 1}),
        (("send-test", "ada@example.com"), {"status": "accepted", "state": "pending"}),
        (("resume",), {"state": "running"}),
        (("stats",), {"received": 4}),
        (("version",), {"Python": sys.version.split()[0]}),
    ],
)
def test_what_is_a_sentence_is_json_with_json(flask: Flasks, words: tuple[str, ...], told: dict[str, Any]) -> None:
    answer = shown(flask(*words, "--json"))
    assert {name: answer[name] for name in told} == told


@sqlite_only
@pytest.mark.usefixtures("_stored")
def test_checks_and_stops_are_json_with_json(flask: Flasks, engine: Engine) -> None:
    flask("dead-letters", "replay", "--code", "550", "--rate", "1")
    (action,) = reports.actions(engine, kind="replayed").actions
    assert shown(flask("actions", "stop", str(action.id), "--json")) == {"id": action.id, "state": "stopped", "left": 1}
    findings = json.loads(flask("check", "--json").stdout)["findings"]
    assert {"level": "ok", "subject": "invariant", "text": "holds"} in findings
    assert set(shown(flask("secret", "--json"))) == {"secret"}


def test_every_command_that_prints_can_do_so_as_json(app: Flask) -> None:
    def within(command: click.Command) -> Iterator[click.Command]:
        if isinstance(command, click.Group):
            for one in command.commands.values():
                yield from within(one)
        else:
            yield command

    ours = [command for name, command in app.cli.commands.items() if name != "db"]
    assert len(ours) > 10
    assert {one.name for command in ours for one in within(command) if not isinstance(one, Printing)} == {
        run_everything.name
    }


@sqlite_only
@pytest.mark.parametrize(
    ("words", "said", "done"),
    [
        (("erase", "ada@example.com"), ["500 so far", "501 so far"], "501 e-mails erased\n"),
        (("emails", "send", "--state", "pending"), ["500 of 501", "501 of 501"], "501 of 501 made due\n"),
        (("dead-letters", "discard", "--all"), ["200 of 201", "201 of 201"], "201 discarded\n"),
    ],
)
@pytest.mark.parametrize("pipe", ["", "stderr"])
def test_long_work_shows_its_progress_on_a_terminal_and_nothing_in_a_pipe(
    engine: Engine, config: Config, tmp_path: Path, words: tuple[str, ...], said: list[str], done: str, pipe: str
) -> None:
    count = 201 if words[0] == "dead-letters" else 501
    outbox.accept_many(engine, [new_email(f"m-{n}", user="ada@example.com") for n in range(count)], config)
    with engine.begin() as connection:
        for statement in {"emails": LATER, "dead-letters": FAILED}.get(words[0], ()):
            connection.exec_driver_sql(statement)
    out, err = in_a_process(tmp_path, config, *words, pipe=pipe)
    assert out == done
    forgotten = "\x1b[K"
    assert err == ("" if pipe else "".join(f"{one}{forgotten}\r" for one in said) + forgotten)


LATER = ("UPDATE emails SET next_attempt_at = '2090-01-01 00:00:00.000000'",)
FAILED = (
    "UPDATE emails SET status = 'failed', next_attempt_at = NULL",
    "INSERT INTO dead_letters (email, reason, error, attempts, created_at) "
    "SELECT id, 'rejected', '550 no', 1, received_at FROM emails",
)


@sqlite_only
def test_an_upgrade_shows_its_steps_on_a_terminal(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config(database_url=f"sqlite:///{tmp_path / 'new.db'}")
    out, err = in_a_process(tmp_path, config, "db", "upgrade")
    assert out.startswith("schema none → ")
    steps = [line.removesuffix("\x1b[K") for line in err.split("\r")[:-1]]
    assert steps == [f"{n} of {len(steps)}" for n in range(1, len(steps) + 1)]
