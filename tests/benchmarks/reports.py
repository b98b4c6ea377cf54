"""10,000 reports about e-mails that were sent, in batches, by so many clients at once.

    python -m tests.benchmarks.reports --database postgresql --batch 1000 --clients 2

Each is about another e-mail; half of these were uncertain and become `sent`. The second time all are repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flask import Flask
from sqlalchemy import select

from emailsvc import outbox, reports
from emailsvc.app import create_app
from emailsvc.db import schema
from emailsvc.db.models import Email
from emailsvc.feedback.reference import reference_of
from emailsvc.mail import Outcome, Result
from emailsvc.settings import config as configuration
from tests.factories import new_email
from tests.servers import PostgreSQL

SECRET = "a-secret-of-the-benchmark"
SENT = Result(Outcome.SENT, "250 ok", 250)
LOST = Result(Outcome.UNCERTAIN, "no reply to the final dot")


@contextmanager
def service(database: str) -> Iterator[Flask]:
    with ExitStack() as close:
        folder = Path(close.enter_context(tempfile.TemporaryDirectory()))
        environ = {"REPORT_SECRETS": f"mine:{SECRET}", "BATCH_SIZE": "1000", "LOG_LEVEL": "WARNING"}
        if database == "postgresql":
            server = PostgreSQL(durable=True)
            close.callback(server.close)
            environ["DATABASE_URL"] = server.url(server.create_database())
        app = create_app(configuration.load(environ, folder / "instance"))
        schema.upgrade(app)
        close.callback(app.extensions["emailsvc"].engine.dispose)
        yield app


def prepare(app: Flask, count: int) -> list[str]:
    """Half sent, half uncertain. Returns their references."""
    own = app.extensions["emailsvc"]
    for start in range(0, count, 1000):
        emails = [new_email(f"m-{number}") for number in range(start, min(start + 1000, count))]
        outbox.accept_many(own.engine, emails, own.config)
        made = outbox.claim(own.engine, f"{start:032}", own.config)
        assert isinstance(made, outbox.Claim)
        for number, row in enumerate(made.rows):
            outbox.record(own.engine, row, made.token, LOST if number % 2 else SENT, own.config)
    with own.engine.connect() as connection:
        return [reference_of(row.id, row.message_id) for row in connection.execute(select(Email.id, Email.message_id))]


def tell(app: Flask, references: list[str], batch: int, clients: int) -> float:
    bodies = [
        json.dumps([{"event": "delivered", "reference": one} for one in references[start : start + batch]])
        for start in range(0, len(references), batch)
    ]

    def post(body: str) -> None:
        answer = app.test_client().post("/reports", data=body, auth=("any", SECRET))
        assert answer.status_code == 200, answer.text

    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(post, bodies))
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--reports", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    with service(options.database) as app:
        references = prepare(app, options.reports)
        for what in ("new", "repeated"):
            seconds = tell(app, references, options.batch, options.clients)
            print(f"{what}: {len(references):,} reports in {seconds:.1f} s, {len(references) / seconds:,.0f} a second")
        stats = reports.stats(app.extensions["emailsvc"].engine)
        print(f"sent {stats.sent:,}, delivered {stats.delivered:,}, settled {stats.settled:,}")


if __name__ == "__main__":
    main()
