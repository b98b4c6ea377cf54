"""Bodies as they come over a real connection to gunicorn: chunked, too large, broken off."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from http.client import HTTPResponse

import pytest

from tests.stack import TOKEN, Stack
from tests.webkit import payload

LIMIT = 20_000
BODY = json.dumps(payload("chunked")).encode()
HEAD = (
    b"POST /webhook/email HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer %b\r\n" % TOKEN.encode()
)


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    stack = make_stack(MAX_REQUEST_BYTES=str(LIMIT), WEB_CONCURRENCY="1")
    stack.release()
    stack.spawn("web")
    stack.wait_ready(live_worker=False)
    return stack


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
