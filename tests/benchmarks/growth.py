"""Does it stay flat? Every operation on a database that has grown, beside one that has not; both on one PostgreSQL.

    python -m tests.benchmarks.growth
    python -m tests.benchmarks.growth --stored 300000 --hour 100000 --waiting 10000    smaller, and sooner done

The grown one holds so many e-mails that were sent in the last month, so many that came in since the last full hour,
and so many that are due; the other 10,000 that were sent. The operations run in this process, on its own connections;
before it measures, the sweep settles what a running service would have settled long ago.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from flask import Flask
from flask.testing import FlaskClient

from emailsvc import outbox
from emailsvc.app import create_app
from emailsvc.db import schema
from emailsvc.outbox import Claim
from emailsvc.settings import config as configuration
from tests.benchmarks.side_by_side import Measured, Side, alternate, compare, insist_on_quiet, options, percentile
from tests.benchmarks.stand import BODY, Stand
from tests.emails import SENT
from tests.factories import payload
from tests.fill import Filling, fill
from tests.stack import TOKEN

MAX_SECONDS = 2.0
"""An operation that takes long is not repeated for longer in one round."""

Connection = psycopg.Connection[Any]


class Grown:
    """One database and everything that is done with it."""

    def __init__(self, stand: Stand, filling: Filling, prepare: Callable[[Connection], object] | None = None) -> None:
        """``prepare``: what is done to the schema before the database is filled."""
        addresses, instance = stand.addresses(), stand.new_folder()
        self.app = _migrated(addresses, instance)
        self.name = addresses["DATABASE_URL"].rpartition("/")[2]
        with stand.postgresql.connect(self.name) as connection:
            if prepare is not None:
                prepare(connection)
            fill(connection, filling)
        self.service = self.app.extensions["emailsvc"]
        self.client: FlaskClient = self.app.test_client()
        self._sent = outbox.SentTogether(self.service.engine)
        self._numbers = count()
        self._settle()

    def _settle(self) -> None:
        for _ in range(3):
            outbox.sweep(self.service.engine, self.service.config)
        outbox.heartbeat(self.service.engine, "benchmark")

    def run(self, repeats: int) -> Measured:
        measured: dict[str, float] = {}
        for name, times in self._timed(repeats):
            measured |= {
                f"{name}, median ms": percentile(times, 0.5) * 1000,
                f"{name}, p99 ms": percentile(times, 0.99) * 1000,
            }
        return measured

    def _timed(self, repeats: int) -> Iterator[tuple[str, list[float]]]:
        yield "accept", _repeat(repeats, self._accept)
        claims, records = self._deliver(repeats)
        yield "claim", claims
        yield "record", records
        for path in ("/stats", "/metrics", "/readyz", "/stats/dead-letters"):
            yield path, _repeat(repeats, partial(self._get, path))
        yield "sweep", _repeat(repeats // 4, lambda: outbox.sweep(self.service.engine, self.service.config))

    def _accept(self) -> None:
        posted = payload(f"new-{next(self._numbers)}", body=BODY)
        answer = self.client.post("/webhook/email", json=posted, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 202, answer.text

    def _deliver(self, repeats: int) -> tuple[list[float], list[float]]:
        claims: list[float] = []
        records: list[float] = []
        while len(records) < repeats:
            began = time.perf_counter()
            claim = outbox.claim(self.service.engine, secrets.token_hex(16), self.service.config)
            claims.append(time.perf_counter() - began)
            assert isinstance(claim, Claim), claim
            for row in claim.rows:
                began = time.perf_counter()
                assert self._sent.record(row, claim.token, SENT.reply, 0.1)
                records.append(time.perf_counter() - began)
        return claims, records

    def _get(self, path: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"}
        answer = self.client.get(path, headers=headers)
        # What waits here waits for nobody: of that /readyz may complain.
        assert answer.status_code == 200 or path == "/readyz", answer.text


_BYTES = """
    SELECT (SELECT pg_indexes_size('emails') / count(*) FROM emails),
        avg(pg_column_size(e)) FILTER (WHERE scrubbed_at IS NOT NULL),
        avg(pg_column_size(e)) FILTER (WHERE scrubbed_at IS NULL)
    FROM emails AS e TABLESAMPLE SYSTEM (5) WHERE status = 'sent'"""


def stored_bytes(connection: Connection) -> str:
    """A line pointer is counted to each row; indexes are as they were built, and grow by a third in use."""
    found = connection.execute(_BYTES).fetchone()
    assert found is not None
    indexes, scrubbed, whole = map(float, found)
    return (
        f"bytes of one e-mail: {whole + 4:.0f} with its content, {scrubbed + 4:.0f} without, {indexes:.0f} in indexes"
    )


def _migrated(addresses: dict[str, str], instance: Path) -> Flask:
    app = create_app(configuration.load({**addresses, "API_TOKENS": TOKEN, "LOG_LEVEL": "WARNING"}, instance))
    schema.upgrade(app)
    return app


def _repeat(repeats: int, do: Callable[[], object]) -> list[float]:
    times: list[float] = []
    while len(times) < repeats and sum(times) < MAX_SECONDS:
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = options(__doc__, rounds=11, minutes=2)
    parser.add_argument("--stored", type=int, default=3_000_000)
    parser.add_argument("--hour", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--failed", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=200, help="of each operation in a round (default 200)")
    given = parser.parse_args()
    insist_on_quiet(given.anyway)
    with Stand() as stand:
        with stand.postgresql.connect() as connection:
            connection.execute("ALTER SYSTEM SET max_wal_size = '16GB'")
            connection.execute("ALTER SYSTEM SET maintenance_work_mem = '512MB'")
            connection.execute("SELECT pg_reload_conf()")
        began = time.monotonic()
        small = Grown(stand, Filling(10_000, waiting=1_000, failed=100))
        large = Grown(stand, Filling(given.stored, given.hour, given.waiting, given.failed))
        print(f"filled in {time.monotonic() - began:.0f} s", flush=True)
        with stand.postgresql.connect(large.name) as connection:
            print(stored_bytes(connection), flush=True)
        name = f"{given.stored:,} stored, {given.hour:,} in the open hour, {given.waiting:,} waiting"
        sides = [Side(name, lambda: large.run(given.repeats)), Side("10,000 stored", lambda: small.run(given.repeats))]
        measured = alternate(sides, given.rounds, given.minutes)
    compare(measured, sides[0].name, sides[1].name)


if __name__ == "__main__":
    main()
