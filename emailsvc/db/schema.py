"""The schema's version: SQLite upgrades itself, PostgreSQL only in the release phase, an old one stops the process."""

from __future__ import annotations

import fcntl
import logging
from functools import cache
from pathlib import Path

import flask_migrate
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from sqlalchemy import Connection, Engine

from emailsvc.errors import ConfigurationError

log = logging.getLogger("emailsvc.database")

MIGRATIONS = Path(__file__).parent / "migrations"


@cache
def _known() -> tuple[str, ...]:
    """Every revision this code has, the newest first."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    return tuple(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())


def newest() -> str:
    """The revision that this code needs."""
    return _known()[0]


def steps_from(revision: str | None) -> int:
    """How many revisions of this code a database lacks that has this one; none when it is newer than the code."""
    known = (*_known(), None)
    return known.index(revision) if revision in known else 0


def is_older(engine: Engine) -> bool:
    """Does the database lack something this code needs? A newer schema is fine: migrations only add.

    Raises the database's errors.
    """
    with engine.connect().execution_options(read_only=True) as connection:
        return _lacks_something(current_revision(connection))


def current_revision(connection: Connection) -> str | None:
    """None for a database that was never set up."""
    return MigrationContext.configure(connection).get_current_revision()


def _lacks_something(revision: str | None) -> bool:
    return steps_from(revision) > 0


def unfit_encoding(connection: Connection) -> str | None:
    """What is wrong with the encoding of a PostgreSQL database; None when it can hold every e-mail."""
    if connection.dialect.name == "sqlite":
        return None
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding == "UTF8":
        return None
    return f"its encoding is {encoding}, and only UTF8 holds every e-mail (`createdb -E UTF8 -l C -T template0 NAME`)"


def upgrade(app: Flask) -> None:
    with app.app_context():
        flask_migrate.upgrade(directory=str(MIGRATIONS))


def ensure(app: Flask, engine: Engine) -> None:
    """Upgrade a SQLite file (processes that start together take turns), or refuse an unfit PostgreSQL database.

    Raises ConfigurationError for the latter, and the database's errors.
    """
    if engine.dialect.name != "sqlite":
        _refuse_unfit(engine)
        return
    with open(app.extensions["emailsvc"].config.instance / "schema.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if is_older(engine):
            upgrade(app)


def _refuse_unfit(engine: Engine) -> None:
    """One in another encoding that is in use goes on: most e-mails fit into it, and those that wait must go out."""
    with engine.connect() as connection:
        revision, unfit = current_revision(connection), unfit_encoding(connection)
    if unfit and revision is None:
        raise ConfigurationError(f"DATABASE_URL: the database cannot be used: {unfit}.")
    if _lacks_something(revision):
        raise ConfigurationError("the database schema is older than this code: run `flask db upgrade` first.")
    if unfit:
        log.warning("database_encoding", extra={"fields": {"error": unfit}})
