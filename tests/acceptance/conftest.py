"""Databases with the schema of this code: a release phase takes a second that only its own tests need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import migrate
from tests.servers import PostgreSQL


@pytest.fixture
def database(postgresql: PostgreSQL, _postgresql_template: str) -> Iterator[str]:
    name = postgresql.create_database(_postgresql_template)
    yield postgresql.url(name)
    postgresql.drop_database(name)


@pytest.fixture
def own_database(own_postgresql: PostgreSQL, tmp_path: Path) -> str:
    """On a server to be stopped, killed and frozen."""
    url = own_postgresql.url(own_postgresql.create_database())
    migrate(url, tmp_path / "instance")
    return url
