"""The schema's version: who upgrades it, who refuses to start on an old one, and processes that come together."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import DateTime, Engine, LargeBinary, bindparam, inspect, text

from emailsvc import reports
from emailsvc.app import _prepared
from emailsvc.commands.diagnosis import diagnose
from emailsvc.db import schema
from emailsvc.db.models import Base
from emailsvc.errors import ConfigurationError
from emailsvc.settings import config
from emailsvc.vocabulary import Status
from tests.emails import REJECTED, SENT, claim, record, replay_many
from tests.factories import payload
from tests.integration.test_cli import run
from tests.servers import PostgreSQL

ROOT = Path(__file__).resolve().parents[2]
TABLES = {*Base.metadata.tables, "alembic_version"}

UPGRADE = """
import sys
from pathlib import Path
from emailsvc.db import schema
from emailsvc.settings import config
from emailsvc.app import create_app

url, folder, how = sys.argv[1:]
app = create_app(config.load({"DATABASE_URL": url} if url else {}, Path(folder)))
print("ready", flush=True)
sys.stdin.readline()
if how == "ensure":
    schema.ensure(app, app.extensions["emailsvc"].engine)
else:
    schema.upgrade(app)
"""


ROWS_OF_0001 = """
INSERT INTO emails (email_id, fingerprint, recipient, subject, body, size, message_id, status, priority, on_uncertain,
  attempts, next_attempt_at, claim, lease_expires_at, received_at, sent_at, final_at, scrubbed_at, last_error) VALUES
('pending', 'f', 'a@x.example', 's', 'b', 1, '<1@x>', 'pending', 1, 'hold', 0, :then, NULL, NULL, :then, NULL, NULL,
  NULL, NULL),
('deferred', 'f', 'a@x.example', 's', 'b', 1, '<2@x>', 'pending', 1, 'hold', 1, :then, 'old', NULL, :then, NULL, NULL,
  NULL, '451 later'),
('sending', 'f', 'a@x.example', 's', 'b', 1, '<3@x>', 'sending', 1, 'hold', 0, :then, 'mine', :later, :then, NULL, NULL,
  NULL, NULL),
('sent', 'f', 'a@x.example', NULL, NULL, 1, '<4@x>', 'sent', 1, 'hold', 1, NULL, 'old', NULL, :then, :then, :then,
  :then, NULL),
('failed', 'f', 'a@y.example', 's', 'b', 1, '<5@x>', 'failed', 0, 'retry', 1, NULL, 'old', NULL, :then, NULL, NULL,
  NULL, '550 no'),
('discarded', 'f', NULL, NULL, NULL, 1, '<6@x>', 'failed', 2, 'hold', 1, NULL, 'old', NULL, :then, NULL, :then, :then,
  NULL),
('cancelled', 'f', 'a@x.example', 's', 'b', 1, '<7@x>', 'cancelled', 1, 'hold', 0, NULL, NULL, NULL, :then, NULL, :then,
  NULL, NULL);
INSERT INTO attachments (email, position, filename, content_type, content)
  SELECT id, 0, 'a.txt', 'text/plain', :content FROM emails WHERE email_id = 'failed';
INSERT INTO attempts (email, outcome, code, enhanced, text, domain, started_at, at)
  SELECT id, 'deferred', 451, '4.7.1', '451 later', 'x.example', :then, :then FROM emails WHERE email_id = 'deferred';
INSERT INTO attempts (email, outcome, code, enhanced, text, domain, started_at, at)
  SELECT id, 'rejected', 550, NULL, 'RCPT: 550 no', 'y.example', :then, :then FROM emails WHERE email_id = 'failed';
INSERT INTO dead_letters (email, reason, error, attempts, created_at)
  SELECT id, 'rejected', 'RCPT: 550 no', 1, :then FROM emails WHERE email_id = 'failed';
INSERT INTO dead_letters (email, reason, error, attempts, created_at, resolved_at, resolution)
  SELECT id, 'exhausted', '(erased)', 1, :then, :then, 'discarded' FROM emails WHERE email_id = 'discarded';
INSERT INTO counters (hour, kind, shard, value) VALUES (:hour, 'duplicates', 0, 4);
INSERT INTO workers (id, started_at, seen_at) VALUES ('worker-1', :then, :then);
UPDATE switch SET outage_since = :then, outage_reason = 'refused', next_probe_at = :then, rolled_up_to = :hour
"""
"""What processes of the release before wrote: a row in every state, and an outage."""


def write_rows_of_0001(engine: Engine) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)  # as SQLite keeps it; the sessions of PostgreSQL are in UTC
    values = {
        "then": now - timedelta(seconds=60), "later": now + timedelta(seconds=60), "content": b"hi",
        "hour": now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1),
    }  # fmt: skip
    with engine.begin() as connection:
        for statement in ROWS_OF_0001.split(";\n"):
            names = set(re.findall(r":([a-z]+)", statement))
            bound = text(statement).bindparams(
                *(bindparam(name, type_=LargeBinary if name == "content" else DateTime) for name in names)
            )
            connection.execute(bound, {name: values[name] for name in names})


def content(engine: Engine, columns: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return {
            table: sorted(map(tuple, connection.execute(text(f"SELECT {', '.join(names)} FROM {table}"))), key=repr)
            for table, names in columns.items()
        }


@pytest.fixture(params=["sqlite", "postgresql"])
def of_0001(request: pytest.FixtureRequest, make: Callable[[str], Flask]) -> Flask:
    """An application of today on a database of the release before."""
    app = make("" if request.param == "sqlite" else request.getfixturevalue("empty_postgresql"))
    with app.app_context():
        flask_migrate.upgrade(directory=str(schema.MIGRATIONS), revision="0001")
    write_rows_of_0001(engine_of(app))
    return app


def test_a_database_of_the_release_before_is_upgraded_and_goes_on(of_0001: Flask) -> None:
    engine, settings = engine_of(of_0001), of_0001.extensions["emailsvc"].config
    tables = sorted({*inspect(engine).get_table_names()} - {"alembic_version"})
    columns = {table: [column["name"] for column in inspect(engine).get_columns(table)] for table in tables}
    before = content(engine, columns)
    assert schema.is_older(engine)
    schema.upgrade(of_0001)
    assert not schema.is_older(engine)
    assert content(engine, columns) == before, "migrations only add"
    assert reports.violations(engine, settings) == []
    stats = reports.stats(engine)
    counts = {state.value: getattr(stats, state.value) for state in Status}
    assert counts == {"pending": 2, "sending": 1, "sent": 1, "failed": 2, "cancelled": 1}
    assert (stats.delivery.state, stats.duplicates) == ("outage", 4)
    probe = claim(engine, settings)
    assert [row.email_id for row in probe.rows] == ["pending"]
    assert record(engine, settings, probe, SENT).outage_seconds is not None
    assert replay_many(engine) == 1
    rest = claim(engine, settings)
    assert [row.email_id for row in rest.rows] == ["failed"]
    assert record(engine, settings, rest, REJECTED).reason == "rejected"


def test_processes_of_the_release_before_write_on_beside_the_new_schema(of_0001: Flask) -> None:
    """All that they know are the columns of their own release, and they name them."""
    engine = engine_of(of_0001)
    schema.upgrade(of_0001)
    with engine.begin() as connection:
        for table in ("attachments", "attempts", "dead_letters", "emails", "counters", "workers"):
            connection.execute(text(f"DELETE FROM {table}"))
    write_rows_of_0001(engine)
    assert reports.violations(engine, of_0001.extensions["emailsvc"].config) == []
    with engine.connect() as connection:
        assert set(connection.execute(text("SELECT command FROM attempts")).scalars()) == {None}


@pytest.fixture
def empty_postgresql(postgresql: PostgreSQL) -> Iterator[str]:
    name = postgresql.create_database()
    yield postgresql.url(name)
    postgresql.drop_database(name)


@pytest.fixture
def make(make_app: Callable[[config.Config], Flask], tmp_path: Path) -> Callable[[str], Flask]:
    return lambda url: make_app(config.load({"DATABASE_URL": url} if url else {}, tmp_path))


def engine_of(app: Flask) -> Engine:
    engine: Engine = app.extensions["emailsvc"].engine
    return engine


def ensure(app: Flask) -> None:
    schema.ensure(app, engine_of(app))


def version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def set_version(engine: Engine, value: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :value"), {"value": value})


def together(count: int, url: str, folder: Path, how: str) -> list[str]:
    """So many processes do it at the same moment; what each complained of."""
    command = [sys.executable, "-W", "error", "-c", UPGRADE, url, str(folder), how]
    pipe = subprocess.PIPE
    with ExitStack() as close:
        processes = [
            close.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
            for _ in range(count)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        complaints = [process.communicate(timeout=60)[1] for process in processes]
    return [words for process, words in zip(processes, complaints, strict=True) if process.returncode != 0]


def test_sqlite_makes_its_own_schema(make: Callable[[str], Flask]) -> None:
    app = make("")
    assert schema.is_older(engine_of(app))
    ensure(app)
    assert not schema.is_older(engine_of(app))
    assert set(inspect(engine_of(app)).get_table_names()) == TABLES


def test_processes_that_start_together_make_the_schema_of_a_sqlite_file_once(
    make: Callable[[str], Flask], tmp_path: Path
) -> None:
    assert together(2, "", tmp_path, "ensure") == []
    engine = engine_of(make(""))
    assert not schema.is_older(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM switch")).scalar() == 1


def test_an_old_postgresql_schema_is_refused_with_what_to_do(
    make: Callable[[str], Flask], empty_postgresql: str
) -> None:
    app = make(empty_postgresql)
    with pytest.raises(ConfigurationError, match="older than this code: run `flask db upgrade` first"):
        ensure(app)
    assert inspect(engine_of(app)).get_table_names() == []
    schema.upgrade(app)
    ensure(app)
    assert set(inspect(engine_of(app)).get_table_names()) == TABLES


def test_release_phases_that_run_together_take_turns(
    make: Callable[[str], Flask], empty_postgresql: str, tmp_path: Path
) -> None:
    assert together(2, empty_postgresql, tmp_path, "upgrade") == []
    ensure(make(empty_postgresql))


def test_a_newer_schema_is_fine_because_the_old_code_runs_on_during_a_deploy(app: Flask) -> None:
    engine = engine_of(app)
    set_version(engine, "9999")
    assert not schema.is_older(engine)
    ensure(app)
    assert version(engine) == "9999"


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(app: Flask) -> None:
    before = version(engine_of(app))
    schema.upgrade(app)
    assert version(engine_of(app)) == before


# A database that cannot hold every e-mail

MakeDatabase = Callable[[str], str]
IN_C = "LC_COLLATE 'C' LC_CTYPE 'C'"


@pytest.fixture
def make_database(postgresql: PostgreSQL) -> Iterator[MakeDatabase]:
    """The URL of an empty one in the given encoding."""
    made: list[str] = []

    def make(encoding: str) -> str:
        made.append(postgresql.create_database("template0", f"ENCODING '{encoding}' {IN_C}"))
        return postgresql.url(made[-1])

    yield make
    for name in made:
        postgresql.drop_database(name)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_empty_database_in_another_encoding_is_refused(
    make: Callable[[str], Flask], make_database: MakeDatabase, encoding: str
) -> None:
    app = make(make_database(encoding))
    with pytest.raises(ConfigurationError, match=f"its encoding is {encoding}"):
        _prepared(app)
    for command in (["db", "upgrade"], ["start"]):
        done = run(app, *command)
        assert done.exit_code == 1
        assert f"its encoding is {encoding}" in done.output.strip().splitlines()[-1]
    assert diagnosed(app)["encoding"] == "wrong"
    assert set(inspect(engine_of(app)).get_table_names()) <= {"alembic_version"}
    with engine_of(app).connect() as connection:
        assert schema.current_revision(connection) is None


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_one_in_use_is_warned_about_and_fails_the_check(
    make: Callable[[str], Flask],
    make_database: MakeDatabase,
    encoding: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make(make_database(encoding))
    with monkeypatch.context() as as_before:
        as_before.setattr(schema, "unfit_encoding", lambda _connection: None)
        schema.upgrade(app)
    assert _prepared(app)
    (warning,) = [record for record in caplog.records if record.getMessage() == "database_encoding"]
    assert f"its encoding is {encoding}" in warning.__dict__["fields"]["error"]
    schema.upgrade(app)
    assert diagnosed(app)["encoding"] == "wrong"
    client = app.test_client()
    too_much = client.post("/webhook/email", json=payload(subject="Привет")).status_code
    assert too_much == {"LATIN1": 500, "SQL_ASCII": 202}[encoding]
    assert client.post("/webhook/email", json=payload("m-2", subject="Café")).status_code == 202


def test_utf8_is_not_complained_about(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    assert _prepared(app)
    assert "database_encoding" not in caplog.messages
    assert "encoding" not in diagnosed(app)


def diagnosed(app: Flask) -> dict[str, str]:
    return {finding.subject: finding.level for finding in diagnose(app.extensions["emailsvc"])}
