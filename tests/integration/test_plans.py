"""What PostgreSQL does for each statement of the running code, at 20,000 e-mails and at 200,000: the same.

auto_explain notes the plan of everything that a database executes, whoever sends it and however it is prepared.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Engine, text

from emailsvc import outbox
from emailsvc.app import create_app
from emailsvc.outbox import rolling
from emailsvc.reports import searching
from emailsvc.settings import config as configuration
from emailsvc.settings.config import Config
from tests.emails import DEFERRED, OUTAGE, SENT, SUSPENDED, UNCERTAIN, claim, move_switch
from tests.factories import new_email
from tests.fill import BUSY, Filling, fill
from tests.servers import PostgreSQL

SIZES = 20_000, 200_000
GENERIC_AFTER = 12
"""psycopg prepares a statement at its sixth use, and PostgreSQL may plan it for any parameters after five more."""

MORE, DEEPER = 3, 20
"""Where there is ten times as much. A tree may be a page deeper, in each index that a row goes into, and whether a new
version of a row finds room beside the old one, and so needs no index entries, is chance.
"""

_plan = re.compile(r"plan:\n((?:\t.*\n)+)").findall

Plan = dict[str, Any]
Operation = Callable[["Grown"], object]


class Grown:
    """A filled database, and the plans of what is done with it."""

    def __init__(self, server: PostgreSQL, template: str, size: int, instance: Path) -> None:
        name = server.create_database(template)
        with closing(server.connect(name)) as connection:
            share = size // 10
            fill(connection, Filling(size - 4 * share, hour=2 * share, waiting=share, failed=share, busy=10))
            for setting in ("log_min_duration = 0", "log_analyze = on", "log_buffers = on", "log_format = json"):
                connection.execute(f'ALTER DATABASE "{name}" SET auto_explain.{setting}'.encode())
            connection.execute(f'ALTER DATABASE "{name}" SET session_preload_libraries = auto_explain'.encode())
        instance.mkdir()
        self.config: Config = configuration.load({"DATABASE_URL": server.url(name)}, instance)
        self.app: Flask = create_app(self.config)
        self.engine: Engine = self.app.extensions["emailsvc"].engine
        self._log = server.folder / "server.log"
        self._numbers = count()
        for _ in range(2):
            outbox.sweep(self.engine, self.config)  # settles what it would have settled as the rows came
        outbox.heartbeat(self.engine, "a worker of the tests")

    def new_ids(self, how_many: int = 1) -> list[str]:
        return [f"m-{next(self._numbers)}" for _ in range(how_many)]

    def get(self, path: str) -> Any:
        answer = self.app.test_client().get(path, headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        return answer.get_json(silent=True)

    def plans(self, do: Operation) -> list[Plan]:
        outbox.roll_up(self.engine)  # or an operation counts what came in those before it, as many as were quick
        start = self._log.stat().st_size
        for _ in range(GENERIC_AFTER):
            do(self)
        with open(self._log, encoding="utf-8") as log:
            log.seek(start)
            noted = log.read()
        return [json.loads(found.replace("\n\t", "\n")) for found in _plan(noted)]


@pytest.fixture(scope="module")
def databases(
    postgresql: PostgreSQL, _postgresql_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Grown]]:
    with closing(postgresql.connect()) as connection:
        try:
            connection.execute("LOAD 'auto_explain'")
        except psycopg.errors.UndefinedFile:
            pytest.skip("auto_explain is not installed here (it comes with PostgreSQL's contrib modules)")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MARGIN_SECONDS", "MIN_STEP_SECONDS"):
            patch.setattr(rolling, name, 0.0)
        patch.setattr(searching, "MAX_SORTED", SIZES[0] // 20)
        folders = (tmp_path_factory.mktemp("grown") / "instance" for _ in SIZES)
        grown = [Grown(postgresql, _postgresql_template, *each) for each in zip(SIZES, folders, strict=True)]
        yield grown
    for one in grown:
        one.engine.dispose()


def webhooks(grown: Grown) -> None:
    client = grown.app.test_client()
    new, known = grown.new_ids(1)[0], "stored-1000"
    for email_id, status in ((new, 202), (new, 200), (known, 422)):
        payload = {"email_id": email_id, "user": "ada@example.com", "subject": "Hello", "body": "Text"}
        assert client.post("/webhook/email", json=payload).status_code == status


def batches(grown: Grown) -> None:
    emails = [new_email(email_id) for email_id in grown.new_ids(10)]
    outbox.accept_many(grown.engine, [*emails, *emails[:5]], grown.config)


def claims(grown: Grown) -> None:
    for low_first in (False, True):
        made = claim(grown.engine, grown.config, low_first=low_first)
        outbox.release(grown.engine, made.token, grown.config, [row.id for row in made.rows[5:]])
        outbox.release(grown.engine, made.token, grown.config)
    outbox.look(grown.engine)


def records(grown: Grown) -> None:
    made = claim(grown.engine, grown.config)
    for row, result in zip(made.rows, (SENT, DEFERRED, SUSPENDED, UNCERTAIN), strict=False):
        assert outbox.record(grown.engine, row, made.token, result, grown.config).won
    assert outbox.SentTogether(grown.engine).record(made.rows[4], made.token, SENT.reply, 0.1)
    outbox.expire(grown.engine, made.rows[5], made.token, grown.config)
    outbox.renew(grown.engine, made.token, made.rows[6].id, 500)
    outbox.release(grown.engine, made.token, grown.config)


def outages(grown: Grown) -> None:
    made = claim(grown.engine, grown.config)
    outbox.record(grown.engine, made.rows[0], made.token, OUTAGE, grown.config)
    move_switch(grown.engine, 60, "next_probe_at")
    probe = claim(grown.engine, grown.config)
    assert probe.probe
    outbox.record(grown.engine, probe.rows[0], probe.token, SENT, grown.config, probe=True)


def sweeps(grown: Grown) -> None:
    claim(grown.engine, grown.config)
    with grown.engine.begin() as connection:
        connection.execute(text("UPDATE emails SET lease_expires_at = now() WHERE status = 'sending'"))
    swept = outbox.sweep(grown.engine, grown.config)
    outbox.retain(grown.engine, grown.config, swept)
    assert len(swept.uncertain) == 1
    assert not swept.away


def dead_letters(grown: Grown) -> None:
    path = "/stats/dead-letters"
    page = grown.get(f"{path}?limit=10")
    first, second, third, *_ = (letter["id"] for letter in page["dead_letters"])
    for query in (f"cursor={page['next_cursor']}", "reason=rejected", "since=2020-01-01T00:00:00Z"):
        grown.get(f"{path}?{query}")
    outbox.replay(grown.engine, first)
    outbox.delivered(grown.engine, second)
    outbox.discard(grown.engine, third)


def one_email(grown: Grown) -> None:
    for path in ("/emails/stored-1000", "/emails/failed-100"):
        grown.get(path)


SINCE, UNTIL = "2020-01-01T00:00:00Z", "2090-01-01T00:00:00Z"
SEARCHES = (
    {}, {"user": "user100@example0.com"}, {"since": SINCE, "until": UNTIL}, {"state": "sent"}, {"state": "failed"},
    {"state": "sent", "since": SINCE, "until": UNTIL}, {"state": "cancelled"}, {"state": "sending"}, {"order": "due"},
    {"order": "due", "state": "pending", "priority": "normal"}, {"user": BUSY}, {"user": BUSY, "state": "failed"},
)  # fmt: skip


def searches(grown: Grown) -> None:
    """Those whose index knows all that is asked for, and those of a recipient of many; the others look at 10,000
    e-mails at most.
    """
    client = grown.app.test_client()
    for wanted in SEARCHES:
        cursor = None
        for _ in range(2):
            answer = client.post("/emails/search", json=wanted | {"limit": 10, "cursor": cursor})
            assert answer.status_code == 200, answer.text
            cursor = answer.get_json()["next_cursor"]


def page(path: str) -> Operation:
    return lambda grown: grown.get(path)


def the_page(grown: Grown) -> None:
    assert grown.app.test_client().get("/stats", headers={"Accept": "text/html"}).mimetype == "text/html"


OPERATIONS: dict[str, Operation] = {
    "webhooks": webhooks,
    "batches": batches,
    "claims": claims,
    "records": records,
    "outages": outages,
    "sweeps": sweeps,
    "dead letters": dead_letters,
    "resolved dead letters": page("/stats/dead-letters?resolved=1"),
    "one e-mail": one_email,
    "searches": searches,
    "/stats": page("/stats"),
    "/stats/hours": page("/stats/hours"),
    "the page": the_page,
    "/metrics": page("/metrics"),
    "/readyz": page("/readyz"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_statement_reads_more_of_a_database_that_has_grown(databases: list[Grown], name: str) -> None:
    small, large = (database.plans(OPERATIONS[name]) for database in databases)
    assert small, "auto_explain has noted nothing"
    scanned = {plan["Query Text"] for plan in (*small, *large) for node in nodes(plan["Plan"]) if is_scan(node)}
    assert not scanned, "the whole table is read"
    before, after = most_buffers(small), most_buffers(large)
    grown = {what: (before[what], pages) for what, pages in after.items() if pages > MORE * before[what] + DEEPER}
    assert not grown, f"pages read at {SIZES[0]:,} and at {SIZES[1]:,} e-mails"


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def is_scan(node: Plan) -> bool:
    return (node["Node Type"], node.get("Relation Name")) == ("Seq Scan", "emails")


def most_buffers(plans: list[Plan]) -> Counter[str]:
    """By statement, the most pages that one execution of it has looked at."""
    pages: Counter[str] = Counter()
    for plan in plans:
        read = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        statement = " ".join(plan["Query Text"].split())
        pages[statement] = max(pages[statement], read)
    return pages
