"""The schema's version: who upgrades it, who refuses to start on an old one, and processes that come together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Engine, inspect, text

from emailsvc import config, schema
from emailsvc.app import _prepared
from emailsvc.diagnosis import diagnose
from emailsvc.errors import ConfigurationError
from emailsvc.models import Base
from tests.servers import PostgreSQL
from tests.test_cli import run

ROOT = Path(__file__).resolve().parent.parent
TABLES = {*Base.metadata.tables, "alembic_version"}

UPGRADE = """
import sys
from pathlib import Path
from emailsvc import config, schema
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
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(count)
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
    client, payload = app.test_client(), {"email_id": "m-1", "user": "ada@example.com", "body": "Text"}
    too_much = client.post("/webhook/email", json={**payload, "subject": "Привет"}).status_code
    assert too_much == {"LATIN1": 500, "SQL_ASCII": 202}[encoding]
    assert client.post("/webhook/email", json={**payload, "email_id": "m-2", "subject": "Café"}).status_code == 202


def test_utf8_is_not_complained_about(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    assert _prepared(app)
    assert "database_encoding" not in caplog.messages
    assert "encoding" not in diagnosed(app)


def diagnosed(app: Flask) -> dict[str, str]:
    return {finding.subject: finding.level for finding in diagnose(app.extensions["emailsvc"])}
