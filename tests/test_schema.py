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
from emailsvc.errors import ConfigurationError
from emailsvc.models import Base
from tests.servers import PostgreSQL

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
