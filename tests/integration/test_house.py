"""What the house promises about itself, where that takes a database or a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, Engine, create_engine, inspect
from sqlalchemy.schema import CreateSchema

from emailsvc.db.models import Base
from emailsvc.settings import config
from tests.conftest import started
from tests.servers import Redis, alive, wait_for

ROOT = Path(__file__).resolve().parents[2]


def test_a_python_that_is_too_old_reads_in_one_line_which_one_is_needed(tmp_path: Path) -> None:
    """Two lines of pip's own stand before it."""
    old = sorted(Path("~/.pyenv/versions").expanduser().glob("3.[89].*/bin/python"))
    old += [Path(found) for name in ("python3.9", "python3.10") if (found := shutil.which(name))]
    usable = [
        path for path in old if subprocess.run([path, "-m", "pip", "--version"], capture_output=True).returncode == 0
    ]
    if not usable:
        pytest.skip("no Python older than 3.11 with pip here")
    command = [usable[0], "-m", "pip", "install", "--no-index", "--target", tmp_path, "-r", ROOT / "requirements.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    assert "needs-Python-3.11-or-newer" in error


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")  # SQLite's
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_the_migrations_make_exactly_the_tables_of_the_models(database_url: str) -> None:
    engine = create_engine(config.load({"DATABASE_URL": database_url}, Path("instance")).database_url)
    assert not _differences(engine, Base.metadata)


def test_the_checks_of_the_migrations_are_those_of_the_models(database_url: str) -> None:
    """Alembic's comparison does not look at them."""
    migrated = create_engine(config.load({"DATABASE_URL": database_url}, Path("instance")).database_url)
    made = migrated if migrated.dialect.name == "postgresql" else create_engine("sqlite://")
    schema = "made_of_models" if made is migrated else None
    try:
        with made.connect() as connection:
            if schema:
                connection.execute(CreateSchema(schema))
            Base.metadata.create_all(connection.execution_options(schema_translate_map={None: schema}))
            wanted = _checks(connection, schema)
            connection.rollback()
        with migrated.connect() as connection:
            assert _checks(connection, None) == wanted
    finally:
        made.dispose()
        migrated.dispose()
    declared = [one for table in Base.metadata.tables.values() for one in table.constraints]
    assert len(wanted) == sum(isinstance(one, CheckConstraint) for one in declared)


def _checks(connection: Connection, schema: str | None) -> dict[tuple[str, str | None], str]:
    inspector = inspect(connection)
    return {
        (table, check["name"]): " ".join(check["sqltext"].split())
        for table in Base.metadata.tables
        for check in inspector.get_check_constraints(table, schema=schema)
    }


def _differences(engine: Engine, metadata: object) -> list[object]:
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": engine.dialect.name != "sqlite"}
            )
            return list(compare_metadata(context, metadata))
    finally:
        engine.dispose()


KILLED = """
import os
from tests.servers import Redis

print(Redis().pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_suite_that_is_killed_leaves_no_server_behind(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed here (Debian: util-linux)")
    started(Redis).close()
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    wait_for(lambda: not alive(int(done.stdout)), 20, "the server to end")
