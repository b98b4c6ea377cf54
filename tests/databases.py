"""PostgreSQL databases for tests that take turns: one is emptied, not made anew, which costs a fraction."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import psycopg
from psycopg import sql

from tests.servers import PostgreSQL

MOST_BYTES = 2_000_000
"""Of tables and their indexes: what a test with many rows leaves behind would change the plans of the next one."""

# Emptying writes no row of the catalog, and neither do VACUUM and ANALYZE; what creates or alters anything does.
_CATALOG = ("pg_class", "pg_attribute", "pg_constraint", "pg_trigger", "pg_proc", "pg_type")
_FINGERPRINT = " UNION ALL ".join(
    f"SELECT '{name}', count(*), max(xmin::text::bigint) FROM {name}" for name in _CATALOG
) + (
    " UNION ALL SELECT 'settings', count(*), 0 FROM pg_db_role_setting"
    " UNION ALL SELECT 'owner', count(*), 0 FROM pg_roles"
)


class Databases:
    """``take()`` gives the name of one like ``template``, ``give_back(name)`` takes it for the next test if it can."""

    def __init__(self, server: PostgreSQL, template: str) -> None:
        self._server, self._template = server, template
        self._numbers = itertools.count(1)
        self._spare: str | None = None
        with contextlib.closing(server.connect(template)) as connection:
            self._fingerprint = connection.execute(_FINGERPRINT.encode()).fetchall()
            self._tables = _column(connection, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            self._sequences = _column(connection, "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'")
            self._rows = {name: _as_json(connection, name) for name in self._tables}

    def take(self) -> str:
        name, self._spare = self._spare, None
        return name or self._server.create_database(self._template)

    def give_back(self, name: str) -> None:
        self._server.kill_connections(name)
        if self._spare is None and self._emptied(name):
            self._spare = self._renamed(name)
        else:
            self._server.drop_database(name)

    def _emptied(self, name: str) -> bool:
        with contextlib.closing(self._server.connect(name)) as connection, connection.transaction():
            size = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND oid >= 16384"
            if connection.execute(_FINGERPRINT.encode()).fetchall() != self._fingerprint:
                return False
            if _column(connection, size)[0] > MOST_BYTES:
                return False
            connection.execute("SET LOCAL session_replication_role = replica")  # no foreign key is looked at
            for table in self._tables:
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
                self._restore(connection, table)
            for sequence in self._sequences:
                connection.execute("SELECT setval(%s::regclass, 1, false)", (sequence,))
        return True

    def _restore(self, connection: psycopg.Connection[Any], table: str) -> None:
        if self._rows[table] is not None:
            insert = "INSERT INTO {0} SELECT * FROM json_populate_recordset(NULL::{0}, %s::json)"
            connection.execute(sql.SQL(insert).format(sql.Identifier(table)), (self._rows[table],))

    def _renamed(self, name: str) -> str:
        """So that a thread which outlived its test does not write into the next one's."""
        new = f"turn{next(self._numbers)}"
        with contextlib.closing(self._server.connect()) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*map(sql.Identifier, (name, new))))
        return new


def _column(connection: psycopg.Connection[Any], query: str) -> list[Any]:
    return [row[0] for row in connection.execute(query.encode())]


def _as_json(connection: psycopg.Connection[Any], table: str) -> str | None:
    query = sql.SQL("SELECT json_agg(t)::text FROM {} t").format(sql.Identifier(table))
    return connection.execute(query).fetchall()[0][0]
