"""What an idle worker process costs, and how long an e-mail waits for it: PostgreSQL with Redis, and SQLite.

    python -m tests.benchmarks.idle [--seconds 30] [--emails 200]

On loopback, with throw-away servers; ends by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.factories import payload
from tests.servers import PostgreSQL, Redis
from tests.smtpd import Smtpd
from tests.stack import Stack, smtp_url


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _statements(server: PostgreSQL, database: str) -> int:
    """Transactions that the database has seen, one for each statement of an idle worker but its heartbeat."""
    with server.connect() as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        found = connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", (database,)
        ).fetchone()
    return int(found[0]) if found else 0


def measure(embedded: bool, seconds: float, emails: int) -> dict[str, str]:
    with ExitStack() as close:
        server = close.enter_context(Smtpd(keep_commands=False))
        folder = close.enter_context(tempfile.TemporaryDirectory())
        urls = {"SMTP_URL": smtp_url(server), "LOG_LEVEL": "WARNING", "WEB_CONCURRENCY": "1"}
        table: dict[str, str] = {}
        database = None
        if not embedded:
            database, redis = PostgreSQL(durable=True), Redis()
            close.callback(database.close)
            close.callback(redis.close)
            name = database.create_database()
            urls |= {"DATABASE_URL": database.url(name), "REDIS_URL": redis.url}
        stack = Stack(Path(folder), **urls)
        close.callback(stack.stop)
        web, (worker,) = stack.start(workers=1)
        waits = [_wait(stack, server, number) for number in range(emails)]
        table["webhook to mail server, ms: median / p99 / worst"] = " / ".join(
            f"{1000 * wait:.0f}"
            for wait in (statistics.median(waits), sorted(waits)[int(len(waits) * 0.99)], max(waits))
        )
        web.term()  # it asks nothing by itself, and this leaves no doubt
        web.wait()
        time.sleep(3)
        before = _cpu_seconds(worker.pid), _statements(database, name) if database else 0
        time.sleep(seconds)
        table["CPU of an idle worker, % of a core"] = f"{100 * (_cpu_seconds(worker.pid) - before[0]) / seconds:.2f}"
        if database:
            table["transactions a second"] = f"{(_statements(database, name) - before[1]) / seconds:.2f}"
    return table


def _wait(stack: Stack, server: Smtpd, number: int) -> float:
    posted = time.time()
    assert stack.post(payload(f"m-{number}")).status == 202
    server.wait(lambda: len(server.accepted) > number)
    time.sleep(0.02)
    return server.accepted[-1].at - posted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--emails", type=int, default=200)
    given = parser.parse_args()
    for name, embedded in (("PostgreSQL + Redis", False), ("SQLite", True)):
        for what, figure in measure(embedded, given.seconds, given.emails).items():
            print(f"{name:20} {what:50} {figure}", flush=True)


if __name__ == "__main__":
    main()
