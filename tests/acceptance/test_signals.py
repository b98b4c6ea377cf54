"""Real processes and signals: a worker that is killed, one that is asked to stop, and a newcomer's first minute."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shlex
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.factories import payload
from tests.servers import PostgreSQL, alive, descendants, free_port, wait_for
from tests.smtpd import HANG, Plan, Smtpd
from tests.stack import SHORT, Stack, copies, smtp_url


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def test_a_killed_worker_leaves_only_the_lowest_row_of_each_claim_uncertain(
    database: str, redis_url: str, sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    sink.behaviour.decide = lambda _: Plan("dot", HANG, taken=True) if sink.taken >= 10 else None
    dyno = {"WORKER_THREADS": "4", "SWEEP_SECONDS": "2"}
    stack = make_stack(DATABASE_URL=database, REDIS_URL=redis_url, SMTP_URL=smtp_url(sink), **dyno)
    _, (worker,) = stack.start(workers=1, release=False)
    ids = [f"mail-{number}" for number in range(120)]
    stack.post_many(ids)
    sink.wait(lambda: sink.taken == 14, 30)  # each thread waits for a reply
    worker.kill9()
    in_hand = rows(database, "SELECT claim, id, email_id FROM emails WHERE status = 'sending' ORDER BY id")
    lowest = {claim: email_id for claim, _, email_id in reversed(in_hand)}
    assert len(in_hand) > len(lowest) == 4
    sink.behaviour.decide = None
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE emails SET lease_expires_at = now() WHERE status = 'sending'")
    stack.spawn("worker")
    stats = stack.wait_settled(40)
    letters = stack.dead_letters()
    assert {letter["email_id"] for letter in letters} == set(lowest.values())
    assert {letter["reason"] for letter in letters} == {"uncertain"}
    taken = copies(sink)
    assert {email_id: taken[email_id] for email_id in ids if email_id not in lowest.values()} == dict.fromkeys(
        set(ids) - set(lowest.values()), 1
    )
    assert max(taken.values()) == 1
    assert stats["sent"] == len(ids) - len(letters)


def test_sigterm_sent_twice_to_every_process_leaves_nothing_in_hand(
    database: str, redis_url: str, sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    sink.behaviour.mail_delay = 0.3
    urls = {"DATABASE_URL": database, "REDIS_URL": redis_url, "SMTP_URL": smtp_url(sink)}
    stack = make_stack(**urls, WEB_CONCURRENCY="2")
    stack.start(workers=2, release=False)
    ids = [f"mail-{number}" for number in range(150)]
    stack.post_many(ids)
    wait_for(lambda: len(copies(sink)) > 10, 30, "the workers to be busy")
    for process in list(stack.processes):
        process.term(times=2)
    for process in list(stack.processes):
        process.wait(25)
    left = Counter(dict(rows(database, "SELECT status, count(*) FROM emails GROUP BY status")))
    assert left["sending"] == 0
    assert left["failed"] == 0
    assert left["pending"] > 0, "the workers were stopped in the middle of their work"
    assert rows(database, "SELECT max(attempts) FROM emails WHERE status = 'pending'") == [(0,)]
    assert left["sent"] == len(copies(sink))
    sink.behaviour.mail_delay = 0
    stack.spawn("web")
    stack.spawn("worker")
    stack.wait_ready()
    assert stack.wait_settled(90)["sent"] == len(ids)
    assert copies(sink) == Counter(dict.fromkeys(ids, 1))


def test_flask_start_shows_a_curl_that_works_and_ends_when_its_terminal_is_closed(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack()
    del stack.environ["API_TOKENS"]
    stack.environ["WEB_CONCURRENCY"] = ""  # counts as none
    start = stack.spawn("start", "flask start")
    stack.wait_ready()
    command = wait_for(lambda: re.search(r"curl (?:.*\\\n)*.*", start.output()), 10, start.output)
    arguments = shlex.split(command.group(0).replace("\\\n", " "))
    first, second = (_play_curl(arguments) for _ in range(2))
    assert (first[0], second[0]) == (202, 200)
    stats = stack.wait_settled(20)
    assert (stats["received"], stats["duplicates"], stats["sent"]) == (1, 1, 1)
    (written,) = (stack.folder / "instance" / "outbox").glob("*.eml")
    assert message_from_bytes(written.read_bytes(), policy=default)["To"]
    second_start = stack.run("flask start", check=False)
    assert second_start.returncode == 1
    assert f"Cannot listen on 0.0.0.0:{stack.port}: Address already in use. Set PORT" in second_start.stderr
    assert "PORT is set" in start.output()
    assert f"0.0.0.0:{stack.port}, every interface" in start.output()
    assert "is running" not in second_start.stderr
    start.signal(signal.SIGHUP)
    assert start.wait(25) == 0, start.output()
    assert "Traceback" not in start.output()
    wait_for(lambda: not _port_is_open(stack.port), 20, "nothing to be left running")


def test_flask_start_on_a_port_of_its_own_stays_on_loopback_and_leaves_nothing_behind_when_it_is_killed(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack()
    stack.environ["PORT"] = "1"  # the option wins, also over a port that could not be had
    start = stack.spawn("start", f"flask start --port {stack.port}")
    stack.wait_ready()
    wait_for(lambda: f"http://127.0.0.1:{stack.port}/webhook" in start.output(), 10, start.output)
    assert "every interface" not in start.output()
    host = _own_address()
    assert host is None or not _port_is_open(stack.port, host)
    second = stack.run(f"flask start --port {stack.port}", check=False)
    assert second.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{stack.port}: Address already in use. Give --port another." in second.stderr
    family = descendants(start.pid)
    assert len(family) > 3
    start.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(alive, family)), 40, lambda: f"all of {family} to end; {start.output()}")
    assert not _port_is_open(stack.port)


def test_flask_start_names_the_process_that_died_and_ends_with_an_error(make_stack: Callable[..., Stack]) -> None:
    start = make_stack().spawn("start", "flask start")
    wait_for(lambda: "emailsvc is running" in start.output(), 40, start.output)
    family = descendants(start.pid)
    (worker,) = (pid for pid in start.children if b"huey_consumer" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    assert start.wait(30) == 1
    assert "emailsvc: the worker process ended by itself" in start.output()
    wait_for(lambda: not any(map(alive, family)), 20, "nothing to be left running")


def _port_is_open(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _play_curl(arguments: list[str]) -> tuple[int, bytes]:
    """What curl does with such a line, where curl itself is not installed."""
    url = next(word for word in arguments if word.startswith("http"))
    data = next(arguments[n + 1] for n, word in enumerate(arguments) if word in ("-d", "--data", "--json"))
    assert "--json" in arguments or any("application/json" in word for word in arguments)
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", f"/{path}", data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_flask_start_ends_cleanly_when_its_terminal_sends_ctrl_c_to_the_whole_group(
    sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    sink.behaviour.mail_delay = 0.3
    stack = make_stack(SMTP_URL=smtp_url(sink))
    start = stack.spawn("start", "flask start")
    stack.wait_ready()
    ids = [f"mail-{number}" for number in range(60)]
    stack.post_many(ids)
    wait_for(lambda: len(copies(sink)) > 4, 20, "some mail to be sent")
    os.killpg(start.pid, signal.SIGINT)
    assert start.wait(25) == 0, start.output()
    assert "Traceback" not in start.output()
    sink.behaviour.mail_delay = 0
    stack.spawn("start", "flask start")
    stack.wait_ready()
    assert stack.wait_settled(60)["sent"] == len(ids)
    assert copies(sink) == Counter(dict.fromkeys(ids, 1))


def test_a_stranger_on_the_network_is_told_what_to_set(make_stack: Callable[..., Stack]) -> None:
    host = _own_address()
    if host is None:
        pytest.skip("this machine has no address beside loopback")
    stack = make_stack()
    del stack.environ["API_TOKENS"]
    stack.spawn("start", "flask start", PORT=str(stack.port))
    stack.wait_ready()

    def ask(method: str, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(host, stack.port, timeout=10)
        try:
            body = json.dumps(payload("from-outside")) if method == "POST" else None
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    assert ask("GET", "/healthz")[0] == 200
    doors = [("POST", "/webhook/email"), ("GET", "/stats"), ("GET", "/stats/dead-letters"), ("GET", "/metrics")]
    for method, path in doors:
        status, body = ask(method, path)
        assert status == 403, (path, body)
        assert "API_TOKENS" in json.loads(body)["detail"]
    assert stack.stats()["received"] == 0


def _own_address() -> str | None:
    """An IPv4 address of this machine that is not loopback (Linux: SIOCGIFADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))
            except OSError:
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                return address
    return None


def test_an_old_schema_is_named_and_nothing_starts(make_stack: Callable[..., Stack], postgresql: PostgreSQL) -> None:
    database = postgresql.create_database()
    stack = make_stack(DATABASE_URL=postgresql.url(database), SMTP_URL=f"smtp://127.0.0.1:{free_port()}")
    try:
        for name in ("web", "worker"):
            process = stack.spawn(name)
            assert process.wait(30) != 0
            assert "flask db upgrade" in process.output()
    finally:
        postgresql.drop_database(database)


@pytest.mark.parametrize(("hangs_at", "state"), [("rcpt", "sent"), ("dot", "failed")])
def test_a_worker_killed_before_its_dot_raises_no_false_alarm(
    hangs_at: str, state: str, database: str, redis_url: str, sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    sink.script("m-1@example.com", Plan(hangs_at, HANG))
    stack = make_stack(DATABASE_URL=database, REDIS_URL=redis_url, SMTP_URL=smtp_url(sink), **SHORT)
    _, (worker,) = stack.start(workers=1, release=False)
    stack.post(payload("m-1"))
    wait_for(lambda: any("RCPT" in line for _, line in sink.commands), 20, "the conversation to be under way")
    wait_for(lambda: hangs_at == "rcpt" or sink.taken == 1, 20, "the dot")
    worker.kill9()
    stack.spawn("worker")
    stack.wait_settled(40)
    assert stack.get("/emails/m-1").json["state"] == state
