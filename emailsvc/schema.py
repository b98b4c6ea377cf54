"""The schema's version: SQLite upgrades itself, PostgreSQL only in the release phase, an old one stops the process."""

from __future__ import annotations

import fcntl
from functools import cache
from pathlib import Path

import flask_migrate
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from sqlalchemy import Engine

from emailsvc.errors import ConfigurationError

MIGRATIONS = Path(__file__).parent / "migrations"


@cache
def _known() -> tuple[str, ...]:
    """Every revision this code has, the newest first."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    return tuple(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())


def is_older(engine: Engine) -> bool:
    """Does the database lack something this code needs? A newer schema is fine: migrations only add.

    Raises the database's errors.
    """
    with engine.connect().execution_options(read_only=True) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    known = _known()
    return current is None or (current in known and current != known[0])


def upgrade(app: Flask) -> None:
    with app.app_context():
        flask_migrate.upgrade(directory=str(MIGRATIONS))


def ensure(app: Flask, engine: Engine) -> None:
    """Upgrade a SQLite file (processes that start together take turns), or refuse an old PostgreSQL schema.

    Raises ConfigurationError for the latter, and the database's errors.
    """
    if engine.dialect.name != "sqlite":
        if is_older(engine):
            raise ConfigurationError("the database schema is older than this code: run `flask db upgrade` first.")
        return
    with open(app.extensions["emailsvc"].config.instance / "schema.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if is_older(engine):
            upgrade(app)
