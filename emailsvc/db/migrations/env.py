"""Alembic's environment, inside `flask db …`."""

from itertools import count

import click
from alembic import context
from flask import current_app
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from emailsvc.commands.base import progress, tell
from emailsvc.db import schema
from emailsvc.db.connections import refused_by_pooler
from emailsvc.errors import brief

db = current_app.extensions["migrate"].db

# Not the service's own connections: those end what takes long, and a migration may.
sqlite = db.engine.dialect.name == "sqlite"
ARGUMENTS = {"client_encoding": "utf8", "prepare_threshold": None}  # a connection pooler would mix up what is prepared
engine = db.engine if sqlite else create_engine(db.engine.url, poolclass=NullPool, connect_args=ARGUMENTS)

try:
    connection = engine.connect()
except OperationalError as exc:
    advice = refused_by_pooler(exc) or f"{brief(exc)}; check DATABASE_URL"
    raise click.ClickException(f"The database cannot be used: {advice}.") from exc

asked = click.get_current_context(silent=True)
says = asked is not None and asked.info_name == "upgrade"  # and no command that makes its SQLite file on the way
made = count(1)


def one_more(*_: object, **__: object) -> None:
    if says:
        progress(next(made), steps)


with connection:
    before = schema.current_revision(connection)
    connection.rollback()
    steps = schema.steps_from(before)
    context.configure(connection=connection, target_metadata=db.metadata, compare_type=True, on_version_apply=one_more)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Two release phases at once take turns; ours is the only use of this number.
            connection.execute(text("SELECT pg_advisory_xact_lock(7365626)"))
            unfit = schema.unfit_encoding(connection)
            if unfit and schema.current_revision(connection) is None:
                raise click.ClickException(f"The database cannot be used: {unfit}.")
        context.run_migrations()
    after = schema.current_revision(connection)

if says:
    tell(None, f"schema {after}, nothing to do" if after == before else f"schema {before or 'none'} → {after}")
