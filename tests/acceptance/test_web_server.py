"""What comes over a real connection to gunicorn: bodies that are chunked, too large or broken off, and slow clients."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPResponse, parse_headers
from typing import BinaryIO

import pytest

from tests.factories import payload
from tests.servers import wait_for
from tests.slow import KINDS, SlowClients, good_client, percentile
from tests.stack import TOKEN, Process, Stack

LIMIT = 20_000
BODY = json.dumps(payload("chunked")).encode()
HEAD = (
    b"POST /webhook/email HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer %b\r\n" % TOKEN.encode()
)


def serve(stack: Stack, *settings: str) -> Process:
    """The web process, with the time limits of ``emailsvc.serving`` shortened by lines of Python."""
    lines = ["from emailsvc.serving import *", "from emailsvc.serving import worker", *settings]
    (stack.folder / "short.py").write_text("\n".join(lines))
    web = stack.spawn("web", "gunicorn wsgi:app --config short.py" if settings else None)
    stack.wait_ready(live_worker=False)
    stack.hang_up()
    return web


@pytest.fixture
def small(make_stack: Callable[..., Stack]) -> Stack:
    return make_stack(MAX_REQUEST_BYTES=str(LIMIT))


def test_a_request_can_be_followed_and_a_refusal_outlives_the_process(small: Stack) -> None:
    """Every line is JSON, gunicorn's own too; what was refused shortly before the end is counted."""
    small.environ["LOG_FORMAT"] = "json"
    web = serve(small)
    answer = small.post(payload(user="nobody"))
    assert (answer.status, answer.json["field"]) == (400, "user")
    assert small.stats()["refused"] == {}
    small.hang_up()
    web.term()
    web.wait()
    lines = [json.loads(line) for line in web.output().splitlines()]
    (told,) = [line for line in lines if line["event"] == "webhook_refused"]
    assert told["request_id"] == answer.headers["x-request-id"]
    assert [line["event"] for line in lines if line["event"].startswith("Listening at")]
    assert {line["logger"] for line in lines} >= {"gunicorn.error", "emailsvc.web"}
    assert json.loads(small.run("flask stats").stdout)["refused"] == {"invalid_field": 1}


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("shared"), MAX_REQUEST_BYTES=str(LIMIT)) as stack:
        serve(stack)
        yield stack


@pytest.fixture
def stack(_shared: Stack) -> Iterator[Stack]:
    """A running one, with no e-mail in its table."""
    with closing(sqlite3.connect(_shared.folder / "instance" / "emailsvc.db")) as connection, connection:
        connection.execute("DELETE FROM emails")
    yield _shared
    _shared.hang_up()
    print(_shared.tail())


def chunked(*chunks: bytes) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks)


def send(stack: Stack, request: bytes, *, hang_up: bool = False) -> tuple[int, str | None]:
    """The status, and the code of a problem."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=15) as connection:
        connection.sendall(HEAD + request)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read()).get("code")


def received(stack: Stack) -> int:
    count: int = stack.stats()["received"]
    return count


def test_a_chunked_body_is_read_whole(stack: Stack) -> None:
    assert send(stack, chunked(BODY[:10], BODY[10:], b""))[0] == 202
    large = json.dumps(payload("exact", body="")).encode()
    exact = large.replace(b'"body": ""', b'"body": "%b"' % (b"x" * (LIMIT - len(large))))
    assert len(exact) == LIMIT
    assert send(stack, chunked(exact, b""))[0] == 202
    assert received(stack) == 2


def test_a_body_that_is_too_large_is_refused_whether_announced_or_not(stack: Stack) -> None:
    assert send(stack, b"Content-Length: 1073741824\r\n\r\n" + BODY) == (413, "too_large")
    # Valid JSON up to the limit: cut there, it would be taken for the whole.
    padded = BODY + b" " * (LIMIT - len(BODY))
    assert send(stack, chunked(padded, b"more", b"")) == (413, "too_large")
    assert received(stack) == 0


def test_a_client_that_sends_all_of_a_body_that_is_too_large_gets_to_read_why(stack: Stack) -> None:
    body = BODY + b" " * (20 * 1024 * 1024)
    assert send(stack, b"Content-Length: %d\r\n\r\n%b" % (len(body), body)) == (413, "too_large")


def test_a_body_that_breaks_off_is_refused_though_it_would_parse(stack: Stack) -> None:
    for request in (
        b"Content-Length: %d\r\n\r\n%b" % (len(BODY) + 1, BODY),
        b"Content-Length: %d\r\n\r\n%b" % (LIMIT - 1, BODY),
        chunked(BODY),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b" % (len(BODY) + 5, BODY),
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n%b" % BODY,
    ):
        assert send(stack, request, hang_up=True) == (400, "incomplete_body"), request
    assert received(stack) == 0


# Clients that are slow, on purpose or not


Connect = Callable[..., socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """``connect(stack, b"GET …")``; closed at the end of the test, however that comes."""
    with ExitStack() as close:

        def make(stack: Stack, sent: bytes = b"") -> socket.socket:
            made = socket.create_connection(("127.0.0.1", stack.port), timeout=30)
            close.enter_context(made).sendall(sent)
            return made

        yield make


def connect_last(stack: Stack, connect: Connect) -> socket.socket:
    """It has its answer, so whoever connected before has been accepted: an only process does so in their order."""
    last = connect(stack, HEALTHZ)
    assert answers(last, 1) == [200]
    return last


def is_closed(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def answers(connection: socket.socket, count: int) -> list[int]:
    """Read through one buffer, since several of them may come at once."""
    with connection.makefile("rb") as file:
        return [answer(file) for _ in range(count)]


def answer(file: BinaryIO) -> int:
    status = int(file.readline().split()[1])
    file.read(int(parse_headers(file)["Content-Length"]))
    return status


HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_two_hundred_slow_clients_hold_nobody_up(make_stack: Callable[..., Stack], connect: Connect) -> None:
    stack = make_stack()
    web = serve(stack)
    with SlowClients(stack.port, 200):
        connect_last(stack, connect)
        times = good_client(stack.port, seconds=5, timeout=15)
    assert percentile(times, 0.99) < 1.0
    assert "Traceback" not in web.output()


def test_every_slow_client_has_a_total_time(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    web = serve(stack, "worker.SLOW_SECONDS = 1.0", "worker.LINGER_SECONDS = 0.5")
    slow_ones = tuple(kind for kind in KINDS if kind != "idle")
    with SlowClients(stack.port, 4, slow_ones) as slow:
        wait_for(lambda: set(slow.turned_out) == set(slow_ones), 30, lambda: f"all to go, not only {slow.turned_out}")
    assert "Traceback" not in web.output()


def test_an_idle_connection_gives_way_to_a_new_one(small: Stack, connect: Connect) -> None:
    serve(small, "worker_connections = 20")
    idle = []
    for _ in range(19):  # one after the other: they become idle in this order
        idle.append(connect(small, HEALTHZ))
        assert answers(idle[-1], 1) == [200]
    for number in range(5):
        with connect(small, HEALTHZ) as new:
            assert answers(new, 1) == [200], number
    assert is_closed(idle[0])  # the connection that asked whether the web is up may have had to go before it
    assert not is_closed(idle[-1])
    idle[-1].sendall(HEALTHZ)
    assert answers(idle[-1], 1) == [200]


def is_up(stack: Stack) -> bool:
    try:
        return stack.get("/healthz").status == 200
    except OSError:
        return False


def test_clients_that_send_half_a_request_do_not_stop_the_web(small: Stack, connect: Connect) -> None:
    web = serve(small, "threads = 2", "worker.SLOW_SECONDS = 2.0")
    halves = (b"G", HEAD + b"Content-Length: 99\r\n\r\n{")  # one for each thread
    clients = [connect(small, half) for half in halves]
    wait_for(lambda: is_up(small), 60, "an answer, when the silent ones have been hung up on")
    assert [one.recv(1) for one in clients] == [b"", b""]
    assert "Traceback" not in web.output()


def test_idle_connections_give_way_when_no_more_files_may_be_open(small: Stack, connect: Connect) -> None:
    web = serve(small, "import resource", "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))")
    idle = [connect(small) for _ in range(100)]
    with connect(small, HEALTHZ) as new:
        assert answers(new, 1) == [200]
    assert is_closed(idle[0])
    assert not is_closed(idle[-1])
    assert "Traceback" not in web.output()


def test_unfinished_requests_get_only_so_much_memory(small: Stack, connect: Connect) -> None:
    serve(small, "worker.MIN_HELD_BYTES = 0")  # so it is four times the largest request
    half = HEAD + b"Content-Length: %d\r\n\r\n" % LIMIT + b" " * (LIMIT - 1000)
    clients = [connect(small, half) for _ in range(8)]
    wait_for(lambda: sum(map(is_closed, clients)) >= 4, 30, "those who came first to be turned out")
    assert sum(map(is_closed, clients)) < 6
    assert send(small, b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)[0] == 202


def test_requests_sent_at_once_are_answered_in_order(stack: Stack, connect: Connect) -> None:
    post = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    post_in_chunks = HEAD + chunked(BODY[:7], BODY[7:], b"")
    with connect(
        stack, post + HEALTHZ + post_in_chunks + HEALTHZ.replace(b"/healthz", b"/nowhere") + post
    ) as connection:
        assert answers(connection, 5) == [202, 200, 200, 404, 200]


def test_a_request_may_come_in_any_pieces(stack: Stack, connect: Connect) -> None:
    request = HEAD + chunked(BODY[:50], BODY[50:], b"")
    with connect(stack) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(request)):
            connection.sendall(request[at : at + 1])
        assert answers(connection, 1) == [202]


def test_a_client_that_asks_whether_to_send_its_body_is_told_once(stack: Stack, connect: Connect) -> None:
    asked = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with connect(stack, asked % len(BODY)) as connection:
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.recv(1000).startswith(b"HTTP/1.1 202 ")
    with connect(stack, asked % (LIMIT + 1)) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_it_stops_in_time_beside_slow_clients_and_answers_what_comes_meanwhile(small: Stack, connect: Connect) -> None:
    web = serve(small)
    with SlowClients(small.port, 20):
        late = connect(small, HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY))
        idle = connect_last(small, connect)
        web.term(times=2)
        wait_for(lambda: is_closed(idle), 20, "the signal to be heard")
        late.sendall(BODY)
        assert answers(late, 1) == [202]
        assert web.wait(25) == 0
    assert "Traceback" not in web.output()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nbroken\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    ],
    ids=["request line", "header", "length", "too long"],
)
def test_what_is_not_http_is_told_so(stack: Stack, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", stack.port), timeout=15) as connection:
        connection.sendall(request_)
        response = HTTPResponse(connection)
        response.begin()
        assert (response.status, response.getheader("Connection")) == (status, "close")


def test_two_web_processes_tell_prometheus_one_truth(make_stack: Callable[..., Stack]) -> None:
    """Each is asked while the other one is frozen."""
    stack = make_stack(WEB_CONCURRENCY="2")
    web = serve(stack)
    for email_id in ("a", "b", "a", "c"):
        assert stack.post(payload(email_id)).status in (200, 202)
        stack.hang_up()
    assert stack.post(payload("d", user="nobody")).status == 400
    wait_for(lambda: len(web.children) == 2, 20, "two processes")
    told = []
    for pid in web.children:
        stack.hang_up()
        os.kill(pid, signal.SIGSTOP)
        told.append(stack.get("/metrics").body.decode())
        os.kill(pid, signal.SIGCONT)
    first, second = ([line for line in one.splitlines() if "oldest_" not in line] for one in told)
    assert first == second
    assert {"emailsvc_received_total 3.0", "emailsvc_duplicates_total 1.0", "emailsvc_pending 3.0"} <= set(first)
