"""Behind PgBouncer: clients share a few connections to the database, and none of them owns one for longer than a
transaction."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from emailsvc import app as application
from emailsvc import outbox, reports
from emailsvc.db import connections, schema
from emailsvc.errors import ConfigurationError
from emailsvc.settings import config as configuration
from emailsvc.settings.config import Config
from tests.emails import accept, row
from tests.factories import payload
from tests.integration.test_cli import check, run
from tests.servers import PgBouncer, PostgreSQL

CLIENTS = 16
LAST_DAY = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)

Poolers = Callable[..., PgBouncer]


@pytest.fixture
def database(postgresql: PostgreSQL, _postgresql_template: str) -> Iterator[str]:
    name = postgresql.create_database(_postgresql_template)
    yield name
    postgresql.drop_database(name)


@pytest.fixture
def pooler(make_pooler: Poolers) -> PgBouncer:
    return make_pooler()


@pytest.fixture
def make_service(make_app: Callable[[Config], Flask], tmp_path: Path) -> Callable[[str], Flask]:
    return lambda url: make_app(configuration.load({"DATABASE_URL": url}, tmp_path))


def engine_of(app: Flask) -> Engine:
    engine: Engine = app.extensions["emailsvc"].engine
    return engine


def shown(connection: Connection, *names: str) -> list[str]:
    return [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]


@pytest.mark.parametrize("ignore", ["", "options"])
def test_webhooks_of_many_clients_are_all_answered(
    make_pooler: Poolers, database: str, make_service: Callable[[str], Flask], ignore: str
) -> None:
    """Four services with three connections each: twelve clients on four connections of the server."""
    pooler = make_pooler(ignore=ignore)
    services = [make_service(pooler.url(database)) for _ in range(4)]

    def post(number: int, words: str) -> int:
        client = services[number % len(services)].test_client()
        return client.post("/webhook/email", json=payload(f"m-{number}", body=words)).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        for words, expected in (("First", 202), ("First", 200), ("Other", 422)):
            assert Counter(pool.map(post, range(160), [words] * 160)) == {expected: 160}
        reading = Counter(pool.map(lambda n: services[n % 4].test_client().get("/stats").status_code, range(80)))
    assert reading == {200: 80}
    stats = reports.stats(engine_of(services[0]))
    assert [getattr(stats, name) for name in ("received", "pending", "duplicates", "mismatches")] == [160] * 4
    assert reports.violations(engine_of(services[0]), services[0].extensions["emailsvc"].config) == []


def test_each_transaction_has_our_limits_and_no_other_client_has_them(
    pooler: PgBouncer, database: str, make_service: Callable[[str], Flask]
) -> None:
    engine = engine_of(make_service(pooler.url(database)))
    names = ("statement_timeout", "idle_in_transaction_session_timeout", "TimeZone")
    with ExitStack() as stack:  # all four connections of the server but one, so that strangers get ours
        others = [stack.enter_context(closing(pooler.connect(database))) for _ in range(3)]
        for other in others:
            other.execute("BEGIN")
        for _ in range(2):
            with engine.connect() as connection:
                assert shown(connection, *names) == ["10s", "30s", "UTC"]
        stranger = stack.enter_context(closing(pooler.connect(database)))
        found = [stranger.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in names]
        assert found == ["0", "0", "Asia/Kathmandu"]


def test_a_long_statement_is_cut(
    pooler: PgBouncer, database: str, make_service: Callable[[str], Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.LIMITS, "statement_timeout", "200ms")
    engine = engine_of(make_service(pooler.url(database)))
    with pytest.raises(OperationalError, match="statement timeout"), engine.begin() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    with engine.begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_pooler_without_a_free_connection_is_not_waited_for(
    make_pooler: Poolers, database: str, make_service: Callable[[str], Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a client that it knows already nor by a new one. PgBouncer itself would let them wait 2 minutes."""
    monkeypatch.setattr(connections, "HELD_SECONDS", 1.0)
    pooler = make_pooler(size=1)
    known, new = make_service(pooler.url(database)), make_service(pooler.url(database))
    assert known.test_client().post("/webhook/email", json=payload("m-1")).status_code == 202
    with closing(pooler.connect(database)) as other:
        other.execute("BEGIN")
        for service in (known, new):
            refused = service.test_client().post("/webhook/email", json=payload("m-2"))
            assert (refused.status_code, refused.json and refused.json["code"]) == (503, "database_unavailable")
    for service, status in ((known, 202), (new, 200)):
        assert service.test_client().post("/webhook/email", json=payload("m-3")).status_code == status


def test_times_are_read_right_to_the_end_of_the_calendar(
    pooler: PgBouncer, database: str, make_service: Callable[[str], Flask]
) -> None:
    """In the server's own time zone that moment lies in the year 10000."""
    app = make_service(pooler.url(database))
    service = app.extensions["emailsvc"]
    accept(service.engine, service.config, "m-1", send_at=LAST_DAY.isoformat())
    assert (outbox.look(service.engine) or 0) > 10**9
    assert row(service.engine, "m-1").send_at == LAST_DAY
    assert app.test_client().get("/emails/m-1").json["send_at"].startswith("9999-12-31T23:59:59")  # type: ignore[index]


def test_a_report_is_one_read_only_snapshot_and_the_next_transaction_is_not(
    pooler: PgBouncer, database: str, make_service: Callable[[str], Flask]
) -> None:
    engine = engine_of(make_service(pooler.url(database)))
    names = ("transaction_isolation", "transaction_read_only", "statement_timeout")
    for _ in range(2):
        with reports.snapshot(engine) as connection:
            assert shown(connection, *names) == ["repeatable read", "on", "10s"]
        with engine.begin() as connection:
            assert shown(connection, *names) == ["read committed", "off", "10s"]


def test_a_role_with_the_same_time_limit_does_not_hide_the_pooler(
    pooler: PgBouncer, postgresql: PostgreSQL, database: str, make_service: Callable[[str], Flask]
) -> None:
    with closing(postgresql.connect(database)) as connection:
        connection.execute(f"ALTER DATABASE \"{database}\" SET statement_timeout = '10s'".encode())
    assert prepared(engine_of(make_service(pooler.url(database)))) == 0


def prepared(engine: Engine) -> int:
    """How many statements the server keeps prepared, after one was used often enough for that."""
    for _ in range(10):
        with engine.begin() as connection:  # psycopg forgets them in a rollback
            found = connection.execute(text("SELECT count(*) FROM pg_prepared_statements WHERE 1 = :one"), {"one": 1})
            count = int(found.scalar_one())
    return count


def test_prepare_threshold_0_means_no_prepared_statements(
    postgresql: PostgreSQL, database: str, make_service: Callable[[str], Flask]
) -> None:
    url = postgresql.url(database)
    assert prepared(engine_of(make_service(url))) > 0
    assert prepared(engine_of(make_service(f"{url}?prepare_threshold=1"))) > 0
    assert prepared(engine_of(make_service(f"{url}?prepare_threshold=0"))) == 0


def questions(driver: Any, work: Callable[[], object]) -> list[str]:
    """What libpq sends meanwhile that wants an answer: a round trip each."""
    with tempfile.TemporaryFile() as trace:
        driver.pgconn.trace(trace.fileno())
        work()
        driver.pgconn.untrace()
        trace.seek(0)
        lines = [line.split("\t") for line in trace.read().decode().splitlines()]
    sent = [words for words in lines if len(words) > 3 and words[1] == "F"]  # a statement may have several lines
    return [" ".join(words[3:]) for words in sent if words[3].startswith(("Query", "Sync"))]


@pytest.mark.parametrize("through", ["pooler", "nothing"])
def test_a_transaction_costs_three_round_trips(
    make_pooler: Poolers, postgresql: PostgreSQL, database: str, through: str, make_service: Callable[[str], Flask]
) -> None:
    url = make_pooler().url(database) if through == "pooler" else postgresql.url(database)
    engine = engine_of(make_service(url))

    def work() -> None:
        connection.execute(text("SELECT CAST(:number AS int)"), {"number": 1})
        connection.commit()

    with engine.connect() as connection:
        asked = questions(connection.connection.driver_connection, work)
    assert len(asked) == 3, asked
    assert ("SET LOCAL" in asked[0]) == (through == "pooler")


@pytest.mark.parametrize(("through", "trips"), [("pooler", 3), ("nothing", 1)])
def test_a_webhook_costs_one_round_trip_and_behind_a_pooler_a_transaction(
    make_pooler: Poolers,
    postgresql: PostgreSQL,
    database: str,
    through: str,
    trips: int,
    make_service: Callable[[str], Flask],
) -> None:
    """Whether it is new, a duplicate or a mismatch, which are counted in the same statement."""
    url = make_pooler().url(database) if through == "pooler" else postgresql.url(database)
    app = make_service(url)
    client, engine = app.test_client(), engine_of(app)
    for number, words, status in ((1, "First", 202), (1, "First", 200), (2, "First", 202), (1, "Other", 422)):
        with engine.connect() as connection:  # the only one, which the webhook gets next
            driver = connection.connection.driver_connection
        asked = questions(driver, partial(client.post, "/webhook/email", json=payload(f"m-{number}", body=words)))
        assert len(asked) == trips, (status, asked)
    assert [row(engine, "m-1").duplicates, row(engine, "m-1").mismatches] == [1, 1]


def test_session_mode_works(make_pooler: Poolers, database: str, make_service: Callable[[str], Flask]) -> None:
    app = make_service(make_pooler(mode="session").url(database))
    assert app.test_client().post("/webhook/email", json=payload("m-1")).status_code == 202
    with reports.snapshot(engine_of(app)) as connection:
        assert shown(connection, "statement_timeout", "transaction_isolation") == ["10s", "repeatable read"]


def test_statement_mode_and_a_parameter_that_is_refused_end_the_start_with_what_to_do(
    make_pooler: Poolers, database: str, make_service: Callable[[str], Flask]
) -> None:
    statements = make_pooler(mode="statement").url(database)
    parameters = make_pooler().url(database) + "?options=-c%20geqo%3Doff"
    for url, words in ((statements, "pool_mode"), (parameters, "options")):
        app = make_service(url)
        with pytest.raises(ConfigurationError, match=words):
            application._prepared(app)
        status, found = check(app.extensions["emailsvc"].config)
        assert (status, found["database"][0]) == (1, "wrong")
        assert words in found["database"][1]
        upgrade = run(app, "db", "upgrade")
        assert upgrade.exit_code == 1
        assert words in upgrade.output.strip().splitlines()[-1]


def test_check_says_that_a_pooler_is_between(
    make_pooler: Poolers, postgresql: PostgreSQL, database: str, tmp_path: Path
) -> None:
    for server, said in ((make_pooler(), True), (postgresql, False)):
        found = check(configuration.load({"DATABASE_URL": server.url(database)}, tmp_path))[1]
        assert ("pooler" in found["database"][1]) is said


def test_the_schema_is_made_through_it(
    pooler: PgBouncer, postgresql: PostgreSQL, make_service: Callable[[str], Flask]
) -> None:
    name = postgresql.create_database()
    app = make_service(pooler.url(name))
    schema.upgrade(app)
    assert application._prepared(app)
    engine_of(app).dispose()
    postgresql.drop_database(name)
