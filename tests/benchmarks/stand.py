"""Where both sides stand: one PostgreSQL with fsync, one Redis and Postfix's smtp-sink, on loopback, thrown away."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from tests.servers import PostgreSQL, Redis, SmtpSink
from tests.stack import ROOT, Stack

BODY = ("Thank you for your order. " * 12)[:300]


class Stand:
    """``with Stand() as stand``: the servers, and deploys on them, each with a database and a queue of its own."""

    def __init__(self) -> None:
        self._close = contextlib.ExitStack()
        self._queues = iter(range(16))

    def __enter__(self) -> Stand:
        with contextlib.ExitStack() as close:
            self.postgresql, self.redis, self.sink = PostgreSQL(durable=True), Redis(), SmtpSink()
            for server in (self.postgresql, self.redis, self.sink):
                close.callback(server.close)
            self.folder = Path(close.enter_context(tempfile.TemporaryDirectory()))
            self._close = close.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def addresses(self) -> dict[str, str]:
        queue = self.redis.url.removesuffix("/0") + f"/{next(self._queues)}"
        return {
            "DATABASE_URL": self.postgresql.url(self.postgresql.create_database()),
            "REDIS_URL": queue,
            "SMTP_URL": f"smtp://127.0.0.1:{self.sink.port}",
        }

    def deploy(self, code: Path = ROOT, *, workers: int, **environ: str) -> Stack:
        """Started and ready, as the Procfile has it; settings are the defaults, the log level among them."""
        stack = Stack(self.new_folder() / "stack", code, **self.addresses() | environ)
        self._close.callback(stack.stop)
        stack.start(workers=workers)
        return stack

    def queue(self, url: str) -> redis.Redis:
        client = redis.Redis.from_url(url)
        self._close.callback(client.close)
        return client

    def at_end(self, do: Callable[[], object]) -> None:
        self._close.callback(do)


@contextlib.contextmanager
def deployed(smtp: str, *, embedded: bool = False, workers: int = 2, **environ: str) -> Iterator[Stack]:
    """One deploy before a mail server of its own, on SQLite when ``embedded``."""
    with contextlib.ExitStack() as close:
        folder = close.enter_context(tempfile.TemporaryDirectory())
        urls = {"SMTP_URL": smtp, "LOG_LEVEL": "WARNING", **environ}
        if not embedded:
            database, redis = PostgreSQL(durable=True), Redis()
            close.callback(database.close)
            close.callback(redis.close)
            urls |= {"DATABASE_URL": database.url(database.create_database()), "REDIS_URL": redis.url}
        stack = Stack(Path(folder), **urls)
        close.callback(stack.stop)
        stack.start(workers=workers)
        yield stack


def commit_of(code: Path) -> str:
    """``1436620``, with a plus sign when what is deployed was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=code, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "emailsvc", "wsgi.py", "Procfile")
    return (git("rev-parse", "--short", "HEAD") or code.name) + ("+" if changed else "")
