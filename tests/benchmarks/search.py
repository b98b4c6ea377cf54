"""How long each search takes in a database that has grown: 3,000,000 e-mails on PostgreSQL, 500,000 on SQLite.

    python -m tests.benchmarks.search
    python -m tests.benchmarks.search --postgresql 300000 --sqlite 50000    smaller, and sooner done

Each search is posted to `/emails/search` of an application in this process, with other values each time where there are
some to choose from. Of the e-mails 97 % were sent in the last month; the others wait, failed and were cancelled; 10,000
went to one mailbox.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import Engine, text

from emailsvc.app import create_app
from emailsvc.db import schema
from emailsvc.settings import config as configuration
from tests.benchmarks.side_by_side import insist_on_quiet, options, percentile, print_table
from tests.fill import BUSY, Filling, fill
from tests.servers import PostgreSQL

DAYS = 30

_SHAPE = (
    f"UPDATE emails SET recipient = '{BUSY}' WHERE id % :every = 0",
    "UPDATE emails SET priority = id % 3 WHERE status = 'pending'",
    "UPDATE emails SET status = 'cancelled', next_attempt_at = NULL, final_at = received_at"
    " WHERE status = 'pending' AND id % 20 = 0",
    "UPDATE emails SET last_error = '552 5.2.2 mailbox full' WHERE status = 'failed' AND id % 100 = 0",
)

_SQLITE = """
    INSERT INTO emails (
        email_id, fingerprint, recipient, subject, body, size, message_id, priority, on_uncertain, status, attempts,
        received_at, next_attempt_at, sent_at, final_at, last_error
    )
    WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count),
    made AS (
        SELECT n,
            strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', (n - :count) * :days * 86400.0 / :count))
                || '000' AS at,
            CASE WHEN n > :count - :waiting THEN 'pending' WHEN n % 150 = 0 THEN 'failed' ELSE 'sent' END AS status
        FROM numbers
    )
    SELECT 'stored-' || n, printf('%064d', n), 'user' || n || '@example' || n % 50 || '.com', 'Your order',
        'Thank you for your order.', 400, '<' || n || '@localhost>', 1, 'hold', status, 1, at,
        CASE status WHEN 'pending' THEN at END, CASE status WHEN 'sent' THEN at END,
        CASE status WHEN 'sent' THEN at END, CASE status WHEN 'failed' THEN '451 4.7.1 try later' END
    FROM made"""


@contextlib.contextmanager
def on_postgresql(size: int) -> Iterator[Flask]:
    server = PostgreSQL(durable=True)
    with contextlib.ExitStack() as close:
        close.callback(server.close)
        name = server.create_database()
        app = close.enter_context(_migrated(server.url(name)))
        with server.connect() as connection:
            connection.execute("ALTER SYSTEM SET max_wal_size = '16GB'")
            connection.execute("ALTER SYSTEM SET maintenance_work_mem = '512MB'")
            connection.execute("SELECT pg_reload_conf()")
        with server.connect(name) as connection:
            waiting, failed = size // 30, size // 150
            fill(connection, Filling(size - waiting - failed, waiting=waiting, failed=failed))
        _shape(app.extensions["emailsvc"].engine, size)
        with server.connect(name) as connection:
            connection.execute("VACUUM (ANALYZE)")
        yield app


@contextlib.contextmanager
def on_sqlite(size: int) -> Iterator[Flask]:
    with tempfile.TemporaryDirectory() as folder, _migrated(f"sqlite:///{folder}/emailsvc.db") as app:
        engine = app.extensions["emailsvc"].engine
        with engine.begin() as connection:
            connection.execute(text(_SQLITE), {"count": size, "waiting": size // 30, "days": DAYS})
        _shape(engine, size)
        yield app


@contextlib.contextmanager
def _migrated(url: str) -> Iterator[Flask]:
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(configuration.load({"DATABASE_URL": url, "LOG_LEVEL": "WARNING"}, Path(folder)))
        schema.upgrade(app)
        yield app
        app.extensions["emailsvc"].engine.dispose()


def _shape(engine: Engine, size: int) -> None:
    with engine.begin() as connection:
        for statement in _SHAPE:
            connection.execute(text(statement), {"every": max(1, size // 10_000)} if ":every" in statement else {})


def searches(size: int) -> dict[str, Callable[[], dict[str, Any]]]:
    lot, now = random.Random(1), datetime.now(UTC)

    def some_hour() -> dict[str, Any]:
        since = now - timedelta(hours=lot.uniform(2, DAYS * 24))
        return {"since": since.isoformat(), "until": (since + timedelta(hours=1)).isoformat()}

    def someone() -> dict[str, Any]:
        number = lot.randrange(1, size * 9 // 10)
        return {"user": f"USER{number}@example{number % 50}.com"}

    states = ("pending", "sending", "sent", "failed", "cancelled")
    return {
        "user": someone,
        "user with 10,000 e-mails": lambda: {"user": BUSY},
        "user with 10,000, state failed": lambda: {"user": BUSY, "state": "failed"},
        **{f"state {state}": lambda state=state: {"state": state} for state in states},  # type: ignore[misc]
        "since and until": some_hour,
        "state sent, since and until": lambda: {"state": "sent", **some_hour()},
        "state failed, since and until": lambda: {"state": "failed", **some_hour()},
        "state pending, since and until": lambda: {"state": "pending", **some_hour()},
        "state failed, error of 1 %": lambda: {"state": "failed", "error": "mailbox full"},
        "state failed, error of none": lambda: {"state": "failed", "error": f"no such {lot.random()}"},
        "state pending, priority": lambda: {"state": "pending", "priority": lot.choice(["high", "normal", "low"])},
        "order due": lambda: {"order": "due"},
        "order due, priority": lambda: {"state": "pending", "order": "due", "priority": "high"},
        "order due, since and until": lambda: {"order": "due", **some_hour()},
        "nothing": dict,
    }


def measure(app: Flask, size: int, repeats: int) -> None:
    client = app.test_client()
    rows = [("", "median ms", "p99 ms", "of the second page", "p99 ms")]
    for name, wanted in searches(size).items():
        first: list[float] = []
        second: list[float] = []
        for _ in range(repeats):
            given, times = wanted(), iter((first, second))
            for taken in times:
                began = time.perf_counter()
                answer = client.post("/emails/search", json=given)
                taken.append((time.perf_counter() - began) * 1000)
                assert answer.status_code == 200, answer.text
                given = given | {"cursor": answer.get_json()["next_cursor"]}
                if given["cursor"] is None:
                    break
        shown = [f"{percentile(some, share):.1f}" if some else "–" for some in (first, second) for share in (0.5, 0.99)]
        rows.append((name, *shown))
    print_table(rows)


def _options() -> Namespace:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--postgresql", type=int, default=3_000_000)
    parser.add_argument("--sqlite", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=200, help="of each search (default 200)")
    return parser.parse_args()


def main() -> None:
    given = _options()
    insist_on_quiet(given.anyway)
    for name, size, database in (("PostgreSQL", given.postgresql, on_postgresql), ("SQLite", given.sqlite, on_sqlite)):
        if size:
            began = time.monotonic()
            with database(size) as app:
                print(f"\n{name}, {size:,} e-mails, filled in {time.monotonic() - began:.0f} s", flush=True)
                measure(app, size, given.repeats)


if __name__ == "__main__":
    main()
