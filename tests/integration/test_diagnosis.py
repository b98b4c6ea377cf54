"""`flask check` and `/readyz` about what answers and yet cannot be used: a Redis, a full disk, no worker."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Engine, text

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.commands.diagnosis import REDIS_KEYS, Finding, diagnose
from emailsvc.reports import MIN_FREE_BYTES
from emailsvc.settings.config import Config
from tests.emails import REJECTED, UNCERTAIN, accept, claim, record
from tests.servers import Redis, free_port

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
OPERATING = (Path(__file__).parents[2] / "emailsvc" / "commands" / "README.md").read_text()


def found(app: Flask, subject: str) -> Finding:
    findings = {finding.subject: finding for finding in diagnose(app.extensions["emailsvc"])}
    return findings[subject]


# Redis


@pytest.fixture
def redis_finding(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config], own_redis: Redis
) -> Callable[..., Finding]:
    """What the check says about this test's own Redis, for a user of it if one is named."""

    def find(user: str = "") -> Finding:
        url = own_redis.url.replace("://", f"://{user}:word@") if user else own_redis.url
        return found(make_app(make_config(redis_url=url)), "redis")

    return find


def keys_of(server: Redis) -> list[bytes]:
    with server.client() as client:
        return list(client.keys())


@sqlite_only
def test_a_redis_that_can_be_used_is_fine_and_nothing_is_left_in_it(
    redis_finding: Callable[..., Finding], own_redis: Redis
) -> None:
    assert redis_finding().level == "ok"
    assert keys_of(own_redis) == []


@sqlite_only
def test_a_full_redis_is_wrong(redis_finding: Callable[..., Finding], own_redis: Redis) -> None:
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
    finding = redis_finding()
    assert finding.level == "wrong"
    assert "maxmemory" in finding.text


@sqlite_only
def test_a_read_only_redis_is_wrong(redis_finding: Callable[..., Finding], own_redis: Redis) -> None:
    with own_redis.client() as client:
        client.replicaof("127.0.0.1", str(free_port()))
    finding = redis_finding()
    assert finding.level == "wrong"
    assert finding.text.endswith("it is a replica: name its primary in REDIS_URL")


@sqlite_only
@pytest.mark.parametrize(
    "rights",
    [
        "~other* +@all",
        "~huey.* +@all",
        "~emailsvc.lock.* +@all",
        "~* +@all -@scripting",
        "~* +@all -brpop",
        "~* +@read",
    ],
)
def test_a_redis_whose_user_lacks_a_right_is_wrong_and_the_keys_are_named(
    redis_finding: Callable[..., Finding], own_redis: Redis, rights: str
) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "mail", "on", ">word", *rights.split())
    finding = redis_finding("mail")
    assert finding.level == "wrong"
    assert REDIS_KEYS in finding.text
    assert "word" not in finding.text
    assert [key for key in keys_of(own_redis) if b"lock" in key] == []


@sqlite_only
def test_the_rights_that_the_readme_gives_are_enough(redis_finding: Callable[..., Finding], own_redis: Redis) -> None:
    (line,) = re.findall(r"ACL SETUSER emailsvc on >PASSWORD (.+)", OPERATING)
    assert {word for word in line.split() if word.startswith("~")} == {f"~{keys}" for keys in REDIS_KEYS.split(" and ")}
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "emailsvc", "on", ">word", *line.split())
    assert redis_finding("emailsvc").level == "ok"
    assert keys_of(own_redis) == []


@sqlite_only
@pytest.mark.parametrize(
    ("policy", "limit", "warned"),
    [("allkeys-lru", "64mb", True), ("allkeys-lru", "0", False), ("noeviction", "64mb", False)],
)
def test_a_redis_that_drops_keys_is_warned_about(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config], own_redis: Redis,
    policy: str, limit: str, warned: bool,
) -> None:  # fmt: skip
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", limit)
    findings = diagnose(make_app(make_config(redis_url=own_redis.url)).extensions["emailsvc"])
    assert [one.level for one in findings if one.subject == "redis memory"] == ["warning"] * warned
    assert all(policy in one.text for one in findings if one.subject == "redis memory")


# The database


def test_what_waits_and_what_was_given_up_is_told(app: Flask, engine: Engine, config: Config) -> None:
    assert found(app, "workers") == Finding("wrong", "workers", "0 alive")
    assert found(app, "due") == Finding("ok", "due", "nothing is")
    accept(engine, config, *"abcdef")
    made = claim(engine, config)
    for number, result in enumerate([REJECTED, UNCERTAIN, REJECTED]):
        record(engine, config, made, result, number)
    outbox.release(engine, made.token, config)
    for name in ("one", "two"):
        outbox.heartbeat(engine, name)
    assert found(app, "workers") == Finding("ok", "workers", "2 alive")
    assert re.fullmatch("the oldest e-mail has been for [0-9]+ s", found(app, "due").text)
    assert found(app, "dead letters") == Finding(
        "warning", "dead letters", "3 wait for a decision: rejected 2, uncertain 1"
    )


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (5, "warning"), (-5, "warning")])
def test_a_clock_that_differs_from_the_database_s_is_told(
    app: Flask, monkeypatch: pytest.MonkeyPatch, ahead: int, level: str
) -> None:
    monkeypatch.setattr("emailsvc.reports.pulse.utcnow", lambda: utcnow() + timedelta(seconds=ahead))
    finding = found(app, "clock")
    assert finding.level == level
    assert ("ahead of" if ahead > 0 else "") in finding.text


def test_a_worker_must_be_alive(app: Flask, engine: Engine) -> None:
    silent = Finding("wrong", "readiness", "no worker has been alive in the last minute")
    assert found(app, "readiness") == silent
    assert found(app, "readiness") == silent, "the check's own row is no worker"
    outbox.heartbeat(engine, "a worker")
    assert found(app, "readiness").level == "ok"


def test_a_check_leaves_nothing_behind(app: Flask, engine: Engine) -> None:
    assert found(app, "database").level == "ok"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM workers")).scalar_one() == 0


@postgresql_only
def test_a_database_that_takes_no_commit_is_wrong(app: Flask, engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    engine.dispose()
    finding = found(app, "database")
    assert finding.level == "wrong"
    assert "read-only transaction" in finding.text


@sqlite_only
def test_room_is_measured_where_the_file_lies(config: Config, engine: Engine, volume: Path) -> None:
    assert reports.disk_is_full(engine) is False
    real = Path(str(engine.url.database))
    moved = volume / real.name
    moved.write_bytes(real.read_bytes())
    real.unlink()
    real.symlink_to(moved)
    assert reports.disk_is_full(engine) is False
    with (volume / "filler").open("wb") as file:
        file.write(bytes(24 * 2**20 - moved.stat().st_size - MIN_FREE_BYTES + 4096))
    assert reports.disk_is_full(engine) is True
