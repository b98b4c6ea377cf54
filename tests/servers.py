"""Real servers for the tests, PostgreSQL to smtp-sink; on loopback, in throw-away folders, stopped by pid."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis

T = TypeVar("T")


class MissingServer(Exception):
    """A binary is not installed; the text says what to install."""


def wait_for(condition: Callable[[], T], deadline: float, what: str | Callable[[], str], pause: float = 0.02) -> T:
    """The first true value of ``condition()``; AssertionError naming ``what`` after ``deadline`` seconds."""
    start = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() - start > deadline:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {deadline:g} s in vain for {text} (last value: {value!r})")
        time.sleep(pause)


def free_port() -> int:
    """Below the range from which the kernel takes ports for connections, so that none of them takes it meanwhile.

    Processes that test at the same time draw from ports of their own: it is free until its server binds it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for port in random.SystemRandom().sample(range(10_000 + worker, 32_000, workers), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port among a hundred")


def children(pid: int) -> list[int]:
    """The direct children of a process, from /proc or, where there is none, from ps."""
    if Path("/proc/self/stat").exists():
        pairs = list(_parents_in_proc())
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [(int(line.split()[0]), int(line.split()[1])) for line in listing.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def _parents_in_proc() -> Iterator[tuple[int, int]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we were looking
                stat = Path(entry.path, "stat").read_text()
                yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return found + [deeper for child in found for deeper in descendants(child)]


_starter = ThreadPoolExecutor(1, "starter")
"""To the kernel a process is a child of the thread that started it, and this one lives to the end."""


def start_process(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """A process that is told to end when this one has ended, killed or not (where there is util-linux)."""
    setpriv = shutil.which("setpriv")
    tied = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
    return _starter.submit(subprocess.Popen, [*tied, *command], **options).result()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # ended meanwhile, or a system without /proc
        return not Path("/proc/self/stat").exists()


class _Server:
    """One process in a folder of its own. ``kill9``, ``freeze`` and ``thaw`` are what the world does to it."""

    name = ""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"emailsvc-{self.name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def spawn_options(self) -> dict[str, Any]:
        return {}

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        with open(self.folder / "server.log", "ab") as log:
            self._process = start_process(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **self.spawn_options(),
            )
        wait_for(self._up, 30, lambda: f"{self.name} to answer; its log ends with:\n{self.log()[-2000:]}")

    def _up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended at once:\n{self.log()[-2000:]}"
        return self.answers()

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        if self._process is None:
            return
        family = descendants(self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, with_signal)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None
        wait_for(lambda: not any(map(alive, family)), 30, f"the children of {self.name} to end")

    def kill9(self) -> None:
        self.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, as a hanging host does."""
        for pid in (self.pid, *descendants(self.pid)):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in (self.pid, *descendants(self.pid)):
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        if os.getpid() != self._owner:
            return  # a forked child reached its exit: the server is not its to stop
        atexit.unregister(self.close)
        self.stop(signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)


class _NotAsRoot(_Server):
    """A program that refuses to run as root; the tests may."""

    def __init__(self) -> None:
        super().__init__()
        self._account = _account() if os.geteuid() == 0 else None
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, -1)

    def spawn_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"env": {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}}
        if self._account is not None:
            options |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return options


def _account() -> pwd.struct_passwd:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in known else "nobody")


class PostgreSQL(_NotAsRoot):
    """A cluster without authentication on loopback, in a time zone at +05:45, which shows any date that is not UTC.

    ``durable=True`` keeps fsync on; without it a cluster survives a kill of its processes, not of the machine.
    """

    name = "postgresql"
    user = "emailsvc"
    _fresh: Path | None = None

    def __init__(self, *, durable: bool = False, max_connections: int = 100) -> None:
        self._binaries = postgresql_binaries()
        super().__init__()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": str(max_connections),
            "timezone": "Asia/Kathmandu",
            "log_timezone": "UTC",
            "fsync": "on" if durable else "off",
            "full_page_writes": "on" if durable else "off",
            "synchronous_commit": "on",
        }
        self._lock = threading.Lock()
        self._numbers = iter(range(1, 10**9))
        self._make_cluster()
        self.start()

    def _make_cluster(self) -> None:
        """As initdb makes it, which takes a second: the first one of this process is kept for the others."""
        if PostgreSQL._fresh is None:
            kept = tempfile.mkdtemp(prefix="emailsvc-cluster-")
            atexit.register(_remove, kept, os.getpid())
            self._run("initdb", "-D", "data", "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            subprocess.run(["cp", "-a", "data", kept], cwd=self.folder, check=True)
            PostgreSQL._fresh = Path(kept, "data")
        else:
            subprocess.run(["cp", "-a", str(PostgreSQL._fresh), "data"], cwd=self.folder, check=True)

    def command(self) -> list[str]:
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", "data", *options]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            **self.spawn_options(),
        )
        assert done.returncode == 0, f"{program} failed:\n{done.stdout}{done.stderr}"

    def answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)

    def create_database(self, template: str = "template1", options: str = "") -> str:
        """A new database cloned from ``template`` (to which nobody may be connected); returns its name."""
        with self._lock, contextlib.closing(self.connect()) as connection:
            name = f"test{next(self._numbers)}"
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {options}'.encode())
        return name

    def drop_database(self, name: str) -> None:
        with contextlib.closing(self.connect()) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())

    def kill_connections(self, database: str) -> int:
        """Cut every session of a database, as a failover does; how many there were."""
        with contextlib.closing(self.connect()) as connection:
            return connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,)
            ).rowcount


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not when a forked child reaches its exit
        shutil.rmtree(folder, ignore_errors=True)


def postgresql_binaries() -> Path:
    on_path = shutil.which("postgres")
    if on_path and shutil.which("initdb", path=str(Path(on_path).parent)):
        return Path(on_path).resolve().parent
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True):
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise MissingServer("PostgreSQL is not installed here (Debian: apt-get install postgresql)")


class PgBouncer(_NotAsRoot):
    """A connection pooler in front of a PostgreSQL, with ``size`` connections to it for each database.

    It refuses start-up parameters that it does not know, but takes those in ``ignore`` and passes them to nobody.
    """

    name = "pgbouncer"

    def __init__(
        self, postgresql: PostgreSQL, *, mode: str = "transaction", size: int = 4, ignore: str = "", clients: int = 200
    ) -> None:
        binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if binary is None:
            raise MissingServer("PgBouncer is not installed here (Debian: apt-get install pgbouncer)")
        self._binary = binary
        super().__init__()
        server = f"host=127.0.0.1 port={postgresql.port} user={postgresql.user}"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": size,
            "max_client_conn": clients,
            "ignore_startup_parameters": ignore,
        }
        lines = [
            "[databases]",
            f"* = {server}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        self.start()

    def command(self) -> list[str]:
        return [self._binary, "pgbouncer.ini"]

    def url(self, database: str) -> str:
        return f"postgresql://{PostgreSQL.user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5, prepare_threshold=None)

    def answers(self) -> bool:
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True


class Redis(_Server):
    """A Redis that keeps nothing on disk: after ``kill9`` and ``start`` it is empty, on the same port."""

    name = "redis"

    def __init__(self) -> None:
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        if binary is None:
            raise MissingServer("Redis is not installed here (Debian: apt-get install redis-server)")
        self._binary = binary
        super().__init__()
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        loopback = ["--bind", "127.0.0.1", "--port", str(self.port)]
        return [self._binary, *loopback, "--save", "", "--appendonly", "no", "--dir", str(self.folder)]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def flushall(self) -> None:
        with self.client() as client:
            client.flushall()


class SmtpSink(_NotAsRoot):
    """Postfix's ``smtp-sink``: it takes every message, keeps none and counts them."""

    name = "smtp-sink"

    def __init__(self) -> None:
        binary = shutil.which("smtp-sink") or shutil.which("smtp-sink", path="/usr/sbin:/usr/libexec/postfix")
        if binary is None:
            raise MissingServer("smtp-sink is not installed here (Debian: apt-get install postfix)")
        self._binary = binary
        super().__init__()
        self.start()

    def command(self) -> list[str]:
        return [self._binary, "-c", f"127.0.0.1:{self.port}", "1000"]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    @property
    def taken(self) -> int:
        """Messages so far; it writes its counters anew after each."""
        with open(self.folder / "server.log", "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 200))
            counts = re.findall(rb"mesg=(\d+)", log.read())
        return int(counts[-1]) if counts else 0


def promtool_path() -> str:
    path = shutil.which("promtool")
    if path is None:
        raise MissingServer("promtool is not installed (Debian: apt-get install prometheus)")
    return path
