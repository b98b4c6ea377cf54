"""What an idle worker process costs, and how long an e-mail waits for it: PostgreSQL with Redis, and SQLite.

    python -m tests.benchmarks.idle [--seconds 30] [--emails 200]

On loopback, with throw-away servers; ends by itself.
"""

from __future__ import annotations

import argparse
import time

import psycopg

from tests.benchmarks.cost import cpu_seconds
from tests.benchmarks.latency import milliseconds
from tests.benchmarks.stand import deployed
from tests.factories import payload
from tests.smtpd import Smtpd
from tests.stack import Stack, smtp_url


def _statements(stack: Stack) -> int:
    """Transactions that the database has seen, one for each statement of an idle worker but its heartbeat."""
    with psycopg.connect(stack.environ["DATABASE_URL"], autocommit=True) as connection:
        found = connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    return int(found[0]) if found else 0


def measure(embedded: bool, seconds: float, emails: int) -> dict[str, str]:
    table: dict[str, str] = {}
    with (
        Smtpd(keep_commands=False) as server,
        deployed(smtp_url(server), embedded=embedded, workers=1, WEB_CONCURRENCY="1") as stack,
    ):
        web, worker = stack.processes
        waits = milliseconds([_wait(stack, server, number) for number in range(emails)])
        table["webhook to mail server, ms: median / p99 / worst"] = " / ".join(f"{wait:.0f}" for wait in waits)
        web.term()  # it asks nothing by itself, and this leaves no doubt
        web.wait()
        time.sleep(3)
        before = cpu_seconds(worker.pid), 0 if embedded else _statements(stack)
        time.sleep(seconds)
        table["CPU of an idle worker, % of a core"] = f"{100 * (cpu_seconds(worker.pid) - before[0]) / seconds:.2f}"
        if not embedded:
            table["transactions a second"] = f"{(_statements(stack) - before[1]) / seconds:.2f}"
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
