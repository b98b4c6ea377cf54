"""Fixtures: a clean environment, no way out of this machine, and an empty migrated database of each kind."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from huey.storage import SqliteStorage
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine

from emailsvc.app import create_app
from emailsvc.db import schema
from emailsvc.settings import config as configuration
from emailsvc.settings.config import Config
from emailsvc.web.refused import EXTENSION
from tests.databases import Databases
from tests.servers import MissingServer, PgBouncer, PostgreSQL, Redis, promtool_path
from tests.smtpd import Smtpd
from tests.stack import Stack

for _name in ("DYNO", *(setting.name for setting in configuration.SETTINGS)):
    os.environ.pop(_name, None)  # for this process and the ones that tests start

# A busy machine is no flaw. What Hypothesis itself takes in CI stays.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for folders; one for single files, ``-k`` and ``-s``, where two are slower or show nothing."""
    folders = all(Path(argument).is_dir() for argument in config.args)
    return 2 if folders and not config.option.keyword and config.option.capture != "no" else 0


@pytest.fixture(autouse=True, scope="session")
def _closed_to_the_outside() -> Iterator[None]:
    """Connections and name look-ups stay on this machine; anything else is an error that names the address."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _check_address(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _check_address(self, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "", "localhost") and not _is_address(name):
            raise socket.gaierror(socket.EAI_NONAME, f"tests look up no names, and this was {name!r}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


def _check_address(sock: socket.socket, address: Any) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = address[0]
    if host == "localhost" or (_is_address(host) and ip_address(host).is_loopback) or _is_ours(sock.family, host):
        return
    raise AssertionError(f"a test reached for {host!r}, outside this machine")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_ours(family: int, host: str) -> bool:
    """An address of this machine's own is one that can be bound."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


@pytest.fixture(autouse=True)
def _queue_files_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Huey leaves its SQLite connection to the end of the process; Python 3.13 warns about each."""
    opened = []
    create = SqliteStorage._create_connection

    def remember(self: SqliteStorage) -> Any:
        connection = create(self)
        opened.append((self, connection))
        return connection

    def over(*_: object) -> Any:
        raise sqlite3.OperationalError("the test is over")

    monkeypatch.setattr(SqliteStorage, "_create_connection", remember)
    yield
    for storage, connection in opened:
        with storage.lock:  # a ringer may be at it
            connection.close()
            storage._conn, storage._create_connection = None, over


def started(start: Callable[[], Any]) -> Any:
    """The server, or a skip that says what to install (in CI: a failure)."""
    try:
        return start()
    except MissingServer as missing:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"{missing}, and in CI nothing may be skipped")
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def promtool() -> str:
    path: str = started(promtool_path)
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The session's server, which every test shares: never stop it, see ``own_postgresql``."""
    server: PostgreSQL = started(PostgreSQL)
    yield server
    server.close()


@pytest.fixture
def own_postgresql() -> Iterator[PostgreSQL]:
    """A server of this test's own, to be stopped, killed and frozen. Its databases are empty, without a schema."""
    server: PostgreSQL = started(PostgreSQL)
    yield server
    server.close()


@pytest.fixture
def make_pooler(postgresql: PostgreSQL) -> Iterator[Callable[..., PgBouncer]]:
    """``make_pooler(mode="session")``: a PgBouncer in front of the session's server."""
    with ExitStack() as close:

        def make(**settings: Any) -> PgBouncer:
            pooler: PgBouncer = started(lambda: PgBouncer(postgresql, **settings))
            close.callback(pooler.close)
            return pooler

        yield make


@pytest.fixture(scope="session")
def _redis() -> Iterator[Redis]:
    server: Redis = started(Redis)
    yield server
    server.close()


@pytest.fixture
def redis_url(_redis: Redis) -> str:
    """The session's Redis, emptied. Never stop it, see ``own_redis``."""
    _redis.flushall()
    return _redis.url


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A Redis of this test's own, to be killed, frozen and flushed."""
    server: Redis = started(Redis)
    yield server
    server.close()


def migrate(url: str, instance: Path) -> None:
    instance.mkdir(parents=True, exist_ok=True)
    app = create_app(configuration.load({"DATABASE_URL": url}, instance))
    schema.upgrade(app)
    app.extensions["emailsvc"].engine.dispose()
    app.extensions["huey"].storage.close()


@pytest.fixture(scope="session")
def _postgresql_template(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = postgresql.create_database()
    migrate(postgresql.url(name), tmp_path_factory.mktemp("template") / "instance")
    return name


@pytest.fixture(scope="session")
def _databases(postgresql: PostgreSQL, _postgresql_template: str) -> Databases:
    return Databases(postgresql, _postgresql_template)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    migrate(f"sqlite:///{folder}/template.db", folder / "instance")
    assert not (folder / "template.db-wal").exists(), "a connection to the template is still open"
    return folder / "template.db"


@pytest.fixture(scope="session")
def _in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what is flushed to its disk at every commit, which takes no time where memory is the disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 2**30:
        yield tmp_path_factory.mktemp("databases")
        return
    with tempfile.TemporaryDirectory(prefix="emailsvc-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty, migrated database, once of each kind.

    For one kind only: ``@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)``.
    """
    if request.param == "sqlite":
        memory = request.getfixturevalue("_in_memory")
        with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as folder:
            shutil.copyfile(request.getfixturevalue("_sqlite_template"), f"{folder}/emailsvc.db")
            yield f"sqlite:///{folder}/emailsvc.db"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    databases: Databases = request.getfixturevalue("_databases")
    name = databases.take()
    yield server.url(name)
    databases.give_back(name)


@pytest.fixture
def make_config(database_url: str, tmp_path: Path) -> Callable[..., Config]:
    """``make_config(batch_size=2)`` is ``BATCH_SIZE=2`` in an otherwise empty environment, on this test's database."""

    def make(**overrides: object) -> Config:
        environ = {"DATABASE_URL": database_url} | {name.upper(): str(value) for name, value in overrides.items()}
        instance = tmp_path / "instance"
        instance.mkdir(exist_ok=True)
        return configuration.load(environ, instance)

    return make


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config()


@pytest.fixture
def make_app() -> Iterator[Callable[[Config], Flask]]:
    made: list[Flask] = []

    def make(config: Config) -> Flask:
        made.append(create_app(config))
        return made[-1]

    yield make
    for app in made:
        app.extensions[EXTENSION].flush(last=True)  # not by a timer, later, into the next test's database
        app.extensions["emailsvc"].engine.dispose()


@pytest.fixture
def app(make_app: Callable[[Config], Flask], config: Config) -> Flask:
    return make_app(config)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def engine(app: Flask) -> Engine:
    engine: Engine = app.extensions["emailsvc"].engine
    return engine


@pytest.fixture
def sink() -> Iterator[Smtpd]:
    """A mail server that takes everything, until the test scripts it."""
    with Smtpd() as server:
        yield server


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """``make_stack(DATABASE_URL=…)``: a deploy in a folder of its own; what it logged is shown when the test fails.

    One web process, unless told: each takes a second of this machine to start."""
    folders = (tmp_path / f"stack{number}" for number in itertools.count())
    with ExitStack() as close:

        def make(**environ: str) -> Stack:
            return close.enter_context(Stack(next(folders), **{"WEB_CONCURRENCY": "1"} | environ))

        yield make


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A small disk of this test's own, which takes root to mount."""
    folder = tmp_path / "volume"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a disk to fill cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
