"""The operator's chapters: their commands run as they stand there, and do what the chapter says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.cli import FlaskGroup
from sqlalchemy import Engine

from emailsvc import app as application
from emailsvc import outbox, reports
from emailsvc.db.models import DeadLetter
from emailsvc.feedback.reference import reference_of
from emailsvc.mail import Result
from emailsvc.outbox import Idle, IdleReason
from emailsvc.settings.config import Config, load
from tests.conftest import started
from tests.emails import (
    OUTAGE,
    SENT,
    SUSPENDED,
    UNCERTAIN,
    accept,
    claim,
    end_leases,
    record,
    row,
    rows,
    token,
)  # fmt: skip
from tests.servers import MissingServer, PostgreSQL, postgresql_binaries
from tests.stack import ROOT

CHAPTERS = ROOT / "emailsvc" / "commands" / "README.md"
PASSWORD = "0123456789abcdef"
PAUSED = {"DELIVERY_PAUSED": "1", "REPORT_SECRETS": f"mine:{PASSWORD}"}


def chapter(heading: str) -> str:
    _, _, rest = CHAPTERS.read_text().partition(f"\n{heading}\n")
    assert rest, heading
    return re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]


def commands(heading: str) -> list[str]:
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```\n", chapter(heading), re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines()]


def flask(app: Flask, line: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "false")
    program, *words = shlex.split(line)
    assert program == "flask"
    done = app.test_cli_runner().invoke(FlaskGroup(create_app=lambda: app, load_dotenv=False), words)
    assert done.exit_code == 0 or words == ["check"], f"{line}\n{done.output}"
    return done.output


def has_sqlite() -> None:
    if shutil.which("sqlite3") is None:
        raise MissingServer("sqlite3 is not installed here (Debian: apt-get install sqlite3)")


# Backing up and restoring


class Site:
    """A service in a folder, its database, and the one that a backup is restored into."""

    def __init__(self, kind: str, folder: Path, server: PostgreSQL | None, make_app: Callable[[Config], Flask]) -> None:
        self.kind, self.folder, self._make_app = kind, folder, make_app
        self.urls = dict.fromkeys(("DATABASE_URL", "RESTORED_URL"), f"sqlite:///{folder}/instance/emailsvc.db")
        if server is not None:
            self.urls = {name: server.url(server.create_database()) for name in self.urls}

    def start(self, url: str, **environ: str) -> Flask:
        app = self._make_app(load({"DATABASE_URL": self.urls[url], **environ}, self.folder / "instance"))
        if self.kind == "postgresql" and url == "DATABASE_URL":
            application.schema.upgrade(app)
        assert application._prepared(app)
        return app

    def shell(self, line: str) -> None:
        path = os.environ["PATH"]
        if self.kind == "postgresql":
            path = f"{postgresql_binaries()}{os.pathsep}{path}"
        environ = {"PATH": path, **self.urls}
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path, make_app: Callable[[Config], Flask]) -> Site:
    (tmp_path / "instance").mkdir()
    if request.param == "sqlite":
        started(has_sqlite)
        return Site(request.param, tmp_path, None, make_app)
    return Site(request.param, tmp_path, request.getfixturevalue("postgresql"), make_app)


TOOLS = {"sqlite": (("sqlite3",), ("rm", "cp")), "postgresql": (("pg_dump",), ("pg_restore",))}


def test_a_restored_backup_sends_nothing_before_somebody_has_looked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the backup "sent" is sent, "in-hand" in a worker's hands, and the others wait; they are sent after it."""
    backup, restore = ([line for line in commands("## Backing up and restoring") if line.startswith(tools)]
        for tools in TOOLS[site.kind])  # fmt: skip
    assert backup
    assert restore
    app = site.start("DATABASE_URL")
    engine, config = app.extensions["emailsvc"].engine, app.extensions["emailsvc"].config
    accept(engine, config, "sent", "in-hand")
    made = claim(engine, config)
    record(engine, config, made, SENT)
    accept(engine, config, "by-log", "by-report", "waits")
    for line in backup:
        site.shell(line)
    record(engine, config, made, SENT, 1)
    made = claim(engine, config)
    for number in range(2):
        record(engine, config, made, SENT, number)
    by_report = row(engine, "by-report")
    accept(engine, config, "unknown")
    engine.dispose()

    for line in restore:
        site.shell(line)
    app = site.start("RESTORED_URL", **PAUSED)
    engine, config = app.extensions["emailsvc"].engine, app.extensions["emailsvc"].config
    flask(app, "flask db upgrade", monkeypatch)
    assert outbox.claim(engine, token(), config) == Idle(IdleReason.PAUSED)
    listed = flask(app, "flask emails list --order due", monkeypatch)
    assert re.findall(r'"email_id": ?"([\w-]+)"', listed) == ["by-log", "by-report", "waits"]
    assert app.test_client().delete("/emails/by-log").status_code == 200
    told = [{"event": "delivered", "reference": reference_of(by_report.id, by_report.message_id)}]
    answer = app.test_client().post("/reports", json=told, auth=("mine", PASSWORD))
    assert answer.get_json()["settled"] == 1
    end_leases(engine)
    outbox.sweep(engine, config)
    assert [letter.reason for letter in rows(engine, DeadLetter)] == ["uncertain"]
    flask(app, "flask resume", monkeypatch)
    assert [claimed.email_id for claimed in claim(engine, config).rows] == ["waits"]
    accept(engine, config, "unknown")
    assert [row(engine, name).status for name in ("sent", "by-log", "by-report", "unknown")] == [
        "sent", "cancelled", "sent", "pending",
    ]  # fmt: skip
    assert reports.violations(engine, config) == []


def test_every_command_of_a_restore_is_one_that_the_tests_run() -> None:
    known = ("flask db upgrade", "flask emails list --order due", "flask resume")
    tools = tuple(tool for pair in TOOLS.values() for tools in pair for tool in tools)
    lines = commands("## Backing up and restoring")
    assert [line for line in lines if line not in known and not line.startswith(tools)] == []
    assert set(known) <= set(lines)


def test_a_copy_of_an_sqlite_file_alone_lacks_what_the_chapter_says(
    tmp_path: Path, make_app: Callable[[Config], Flask]
) -> None:
    app = make_app(load({}, tmp_path / "instance"))
    assert application._prepared(app)
    service = app.extensions["emailsvc"]
    with service.engine.connect():  # so that the last connection is not closed, which would empty the log
        accept(service.engine, service.config)
        (tmp_path / "copied").mkdir()
        shutil.copy(tmp_path / "instance" / "emailsvc.db", tmp_path / "copied" / "emailsvc.db")
    copied = make_app(load({}, tmp_path / "copied"))
    assert application._prepared(copied)
    assert reports.stats(copied.extensions["emailsvc"].engine).received == 0


# Alerting


def test_prometheus_takes_the_configuration_of_the_chapter(promtool: str, tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", chapter("## Alerting"), re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(shown)
    shutil.copy(CHAPTERS.parent / "alerts.yml", tmp_path)
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


# Upgrading, and incidents


@pytest.fixture
def settled(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs the commands of a chapter."""

    def run(heading: str) -> None:
        lines = commands(heading)
        assert lines
        for line in lines:
            flask(app, line, monkeypatch)

    return run


def given_up(engine: Engine, config: Config, result: Result, count: int) -> None:
    accept(engine, config, *(f"m-{number}" for number in range(count)))
    made = claim(engine, config)
    for number in range(count):
        record(engine, config, made, result, number)


def test_the_commands_of_an_upgrade_run(settled: Callable[[str], None]) -> None:
    settled("## Upgrading")


def test_when_nothing_goes_out(engine: Engine, config: Config, settled: Callable[[str], None]) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    outbox.pause(engine, "for a while", who="alice")
    settled("### Nothing goes out")
    assert outbox.may_start(engine)
    assert [one.email_id for one in claim(engine, config).rows] == ["m-1"]


def test_when_everything_is_refused(engine: Engine, config: Config, settled: Callable[[str], None]) -> None:
    given_up(engine, config, SUSPENDED, 3)
    settled("### Everything is refused")
    assert outbox.may_start(engine)
    begun = next(one for one in reports.actions(engine).actions if one.kind == "replayed")
    assert (begun.total, begun.rate, begun.state) == (3, 5.0, "running")


def test_when_many_are_uncertain(engine: Engine, config: Config, settled: Callable[[str], None]) -> None:
    given_up(engine, config, UNCERTAIN, 5)
    settled("### Many uncertain")
    assert [letter.resolution for letter in rows(engine, DeadLetter)] == [
        "delivered", "delivered", "replayed", None, None,
    ]  # fmt: skip
    begun = next(one for one in reports.actions(engine).actions if one.rate)
    assert (begun.kind, begun.total) == ("replayed", 2)
