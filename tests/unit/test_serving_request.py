"""When a request is complete: never a byte too early, for then a thread would wait for it, and never too late."""

from __future__ import annotations

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import given
from hypothesis import strategies as st

from emailsvc.serving.client import Client
from emailsvc.serving.request import Limits, Request

LIMITS = Limits(head=2000, body=300)
HEAD = b"POST /x HTTP/1.1\r\nHost: localhost\r\n"
NEXT = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def with_length(body: bytes) -> bytes:
    return HEAD + b"Content-length:  %d\r\n\r\n%b" % (len(body), body)


def in_chunks(chunks: list[bytes], extension: bytes, trailer: bytes) -> bytes:
    sizes = [b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk]
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(sizes) + b"0\r\n" + trailer + b"\r\n"


bodies = st.binary(max_size=300)
requests = st.one_of(
    bodies.map(with_length),
    st.builds(
        in_chunks,
        st.lists(st.binary(max_size=50), max_size=6),
        st.sampled_from([b"", b";name=value"]),
        st.sampled_from([b"", b"X-Check: 1\r\n"]),
    ),
    st.just(NEXT),
)


@given(requests, st.lists(st.integers(1, 60)), st.booleans())
def test_it_is_complete_with_its_last_byte(whole: bytes, sizes: list[int], followed: bool) -> None:
    request = Request(LIMITS)
    at = 0
    for size in sizes:
        piece = whole[at : min(at + size, len(whole) - 1)]
        request.feed(piece)
        at += len(piece)
        assert not request.is_complete()
    request.feed(whole[at:] + (NEXT if followed else b""))
    assert request.is_complete()


class Remembered(Client):
    """No socket: what a thread needs is in memory."""

    def __init__(self, request: Request) -> None:
        self.request = request


@given(requests, requests)
def test_the_parser_reads_it_without_waiting_and_leaves_the_next(first: bytes, second: bytes) -> None:
    parser = get_parser(Config(), Remembered(Request(LIMITS, first + second)), ("127.0.0.1", 1))
    assert Request(LIMITS, first).is_complete()
    next(parser).body.read()
    read_ahead = parser.unreader.take_buffered()
    assert read_ahead + parser.unreader.sock.request.rest() == second


@pytest.mark.parametrize(
    "odd",
    [
        b"\n\n",
        b"\r\n\r\n",
        b"x" * 2001,
        HEAD + b"Content-Length: 301\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 30\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 9000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n" + b"x" * 301,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 400,
    ],
    ids=lambda odd: odd[-20:],
)
def test_what_will_be_refused_is_not_waited_for(odd: bytes) -> None:
    assert Request(LIMITS, odd).is_complete()


def test_what_ended_is_not_waited_for() -> None:
    request = Request(LIMITS, HEAD)
    assert not request.is_complete()
    request.ended = True
    assert request.is_complete()
