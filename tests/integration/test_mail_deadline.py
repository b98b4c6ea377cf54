"""Nothing keeps a conversation going, neither a dripping server nor a hanging one, and no race with the dot is lost."""

from __future__ import annotations

import gc
import random
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from emailsvc.clock import monotonic
from emailsvc.mail import Attachment, Message, Outcome, Result
from emailsvc.mail.line import Cut, Line, LineCut
from emailsvc.mail.smtp import SmtpTransport
from emailsvc.watchdog import Watchdog
from tests.factories import a_message
from tests.smtpd import DROP, HANG, STALL, Action, Drip, Later, Plan, Smtpd
from tests.transport import Certificate, at, send

SENT, DEFERRED, OUTAGE = Outcome.SENT, Outcome.DEFERRED, Outcome.OUTAGE
UNCERTAIN, CUT = Outcome.UNCERTAIN, Outcome.CUT
AT_ONCE = 5.0  # a bound for what takes milliseconds, on a machine that is busy
DRIP = Drip("250 2.0.0 " + "z" * 60, pause=0.1)  # seven seconds, and never a silent one


@pytest.fixture
def server() -> Iterator[Smtpd]:
    with Smtpd() as server:
        yield server


@pytest.fixture
def transport(server: Smtpd) -> Iterator[SmtpTransport]:
    transport = SmtpTransport(at(server))
    yield transport
    transport.close()


class Sending(threading.Thread):
    """One send in a thread of its own."""

    def __init__(self, transport: SmtpTransport, mail: Message | None = None, **limits: float) -> None:
        super().__init__(daemon=True)
        self.transport, self.mail, self.limits = transport, mail or a_message(), limits
        self.result: Result | None = None
        self.start()

    def run(self) -> None:
        self.result = send(self.transport, self.mail, **self.limits)  # type: ignore[arg-type]

    def outcome(self, within: float = AT_ONCE) -> Outcome:
        self.join(within)
        assert self.result is not None, "still sending"
        return self.result.outcome


def _misbehave(server: Smtpd, step: str, action: Action) -> None:
    if step in ("greeting", "ehlo"):
        setattr(server.behaviour, step, action)
    else:
        server.script("*", Plan(step, action, taken=False))


STEPS = [
    ("greeting", OUTAGE),
    ("ehlo", OUTAGE),
    ("mail", DEFERRED),
    ("rcpt", DEFERRED),
    ("data", DEFERRED),
    ("dot", UNCERTAIN),
]


@pytest.mark.parametrize(("step", "outcome"), STEPS)
@pytest.mark.parametrize("action", [HANG, DRIP], ids=["hang", "drip"])
def test_a_server_that_hangs_or_drips_is_cut_at_the_deadline(
    server: Smtpd, transport: SmtpTransport, step: str, outcome: Outcome, action: Action
) -> None:
    if outcome is not OUTAGE:
        assert send(transport).outcome is SENT  # so that connecting takes nothing of the time
    taken = server.taken
    _misbehave(server, step, action)
    result = send(transport, timeout=10 if step == "dot" else 0.4, reply_timeout=0.4)
    assert result.outcome is outcome
    assert "the deadline passed" in result.reply
    assert server.taken == taken
    server.wait(lambda: server.open_connections == 0)


def test_a_dripped_reply_is_cut_long_before_it_is_complete(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport).outcome is SENT
    server.script("*", Plan("rcpt", DRIP))
    start = time.monotonic()
    assert send(transport, timeout=0.4).outcome is DEFERRED
    assert time.monotonic() - start < 4


def test_a_dripped_reply_within_the_deadline_counts(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("dot", Drip("250 ok", pause=0.02), taken=True))
    assert send(transport).outcome is SENT


def test_the_reply_to_the_dot_has_a_time_of_its_own(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport).outcome is SENT
    server.script("*", Plan("dot", (Later(1.2), "250 ok"), taken=True))
    assert send(transport, timeout=1.0).outcome is SENT


def test_a_server_that_stops_reading_is_cut_at_the_deadline(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport).outcome is SENT
    server.script("*", Plan("data", ("354 go", STALL)))
    mail = a_message(attachments=[Attachment("a.bin", "application/octet-stream", bytes(8_000_000))])
    result = send(transport, mail, timeout=1.0)
    assert result.outcome is DEFERRED
    assert "the deadline passed" in result.reply


def test_a_tls_handshake_that_never_comes_is_cut_at_the_deadline(server: Smtpd) -> None:
    server.behaviour.greeting = HANG
    result = send(SmtpTransport(at(server, "implicit")), timeout=0.4)
    assert result.outcome is OUTAGE
    assert "the deadline passed" in result.reply


def test_a_host_that_does_not_answer_is_cut_at_the_deadline() -> None:
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for each in (first, second):  # the queue is full: further connections are neither taken nor refused
            each.setblocking(False)
            each.connect_ex(silent.getsockname())
        host, port = silent.getsockname()
        result = send(SmtpTransport(at(Smtpd(), host=host, port=port)), timeout=0.4)
    assert result.outcome is OUTAGE
    assert "the deadline passed" in result.reply


def test_a_first_address_that_swallows_everything_hides_no_good_one(
    server: Smtpd, transport: SmtpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with an address of each family where one of them leads nowhere, as in many containers."""
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.2", server.port))
        silent.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(silent.getsockname())
        both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", server.port)) for n in (2, 1)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: both)
        assert send(transport, timeout=2.0).outcome is SENT


def test_a_name_look_up_that_hangs_is_left_behind_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    look_up = socket.getaddrinfo

    def slow(host: str, *args: object, **kwargs: object) -> object:
        if host == "mail.slow":
            if kwargs.get("flags"):
                raise socket.gaierror("not numeric")
            released.wait(10)
        return look_up("127.0.0.1", *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    result = send(SmtpTransport(at(Smtpd(), host="mail.slow", port=1)), timeout=0.3)
    released.set()
    assert result.outcome is OUTAGE
    assert "the deadline passed" in result.reply


def test_the_deadline_that_passes_within_the_note_cuts_before_the_dot(server: Smtpd, transport: SmtpTransport) -> None:
    passed = threading.Event()

    def passing_dot() -> None:
        passed.wait(0.6)

    assert send(transport).outcome is SENT
    assert send(transport, timeout=0.3, passing_dot=passing_dot).outcome is DEFERRED
    assert server.taken == 1


def test_time_that_we_used_up_ourselves_is_no_outage(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport, timeout=-1.0).outcome is DEFERRED
    assert server.connections == 0


# stop


@pytest.mark.parametrize("step", ["greeting", "ehlo", "mail", "rcpt", "data"])
def test_stop_before_the_dot_cuts_at_once(server: Smtpd, transport: SmtpTransport, step: str) -> None:
    _misbehave(server, step, HANG)
    sending = Sending(transport, timeout=60)
    server.wait(lambda: _has_come_to(server, step))
    transport.stop(grace=60)
    assert sending.outcome() is CUT
    assert send(transport).outcome is CUT
    assert (server.taken, server.connections) == (0, 1)


def _has_come_to(server: Smtpd, step: str) -> bool:
    return server.connections == 1 if step == "greeting" else server.seen(step) == 1


def test_stop_cuts_a_tls_handshake(server: Smtpd) -> None:
    server.behaviour.greeting = HANG
    transport = SmtpTransport(at(server, "implicit"))
    sending = Sending(transport, timeout=60)
    server.wait(lambda: server.connections == 1)
    transport.stop(grace=60)
    assert sending.outcome() is CUT


def test_stop_within_the_note_before_the_dot_cuts(server: Smtpd, transport: SmtpTransport) -> None:
    def passing_dot() -> None:
        transport.stop(grace=60)

    assert send(transport, passing_dot=passing_dot).outcome is CUT
    assert server.taken == 0


def test_stop_after_the_dot_waits_for_the_reply(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("dot", (Later(0.3), "250 ok"), taken=True))
    sending = Sending(transport)
    server.wait(lambda: server.taken == 1)
    transport.stop(grace=60)
    assert sending.outcome() is SENT
    assert send(transport).outcome is CUT


def test_stop_after_the_dot_waits_no_longer_than_its_grace(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("dot", HANG, taken=True))
    sending = Sending(transport, reply_timeout=60)
    server.wait(lambda: server.taken == 1)
    transport.stop(grace=0.1)
    assert sending.outcome() is UNCERTAIN
    assert sending.result is not None
    assert "shutting down" in sending.result.reply


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [((Later(0.5), "250 ok"), SENT), ((Later(0.5), "550 no"), Outcome.REJECTED), ((Later(1.5), DROP), UNCERTAIN)],
    ids=["yes", "no", "drop"],
)
def test_close_by_another_thread_changes_nothing_about_a_dot_that_was_sent(
    server: Smtpd, transport: SmtpTransport, reply: Action, outcome: Outcome
) -> None:
    """As a worker does whose thread still waits for a reply when its time to stop is over."""
    server.script("*", Plan("dot", reply, taken=True))
    sending = Sending(transport)
    server.wait(lambda: server.taken == 1)
    transport.stop(grace=60)
    transport.close()
    assert sending.outcome() is outcome


def test_the_grace_never_prolongs_the_wait(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("dot", HANG, taken=True))
    sending = Sending(transport, reply_timeout=0.5)
    server.wait(lambda: server.taken == 1)
    transport.stop(grace=60)
    assert sending.outcome() is UNCERTAIN


def test_stop_leaves_a_kept_connection_to_a_polite_close(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport).outcome is SENT
    transport.stop(grace=0)
    transport.close()
    server.wait(lambda: server.seen("QUIT") == 1)


def test_stop_before_the_first_mail_lets_none_start(server: Smtpd, transport: SmtpTransport) -> None:
    transport.stop(grace=0)
    assert send(transport).outcome is CUT
    assert server.connections == 0


# the line alone


class Asleep(Watchdog):
    """Never looks at anybody: what holds then holds without it."""

    def due(self, at: float) -> None:
        pass


def test_nobody_passes_the_dot_after_the_deadline_even_when_the_watchdog_sleeps() -> None:
    line = Line(Asleep())
    assert line.begin(monotonic() - 0.001)
    assert not line.pass_dot(monotonic() + 60)
    assert line.cut is Cut.DEADLINE


@pytest.mark.parametrize("order", ["stop, then attach", "attach, then stop"])
def test_a_socket_is_shut_whether_it_comes_before_or_after_the_cut(order: str) -> None:
    ours, theirs = socket.socketpair()
    line = Line(Asleep())
    assert line.begin(monotonic() + 60)
    for step in order.split(", then "):
        line.stop(60) if step == "stop" else line.attach(ours)
    theirs.settimeout(AT_ONCE)
    assert theirs.recv(1) == b""
    line.release()
    ours.close()
    theirs.close()


def test_a_line_that_is_dropped_is_forgotten() -> None:
    watchdog = Watchdog()
    line = weakref.ref(Line(watchdog))
    gc.collect()
    assert line() is None


def test_an_error_of_one_line_leaves_the_watchdog_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def tick(self, now: float) -> float:
            raise RuntimeError("oops")

    watchdog, broken = Watchdog(), Broken()
    watchdog.watch(broken)
    line = Line(watchdog)
    assert line.begin(monotonic() + 0.05)
    with pytest.raises(LineCut):
        line.call(lambda: threading.Event().wait(AT_ONCE))
    assert "could not be enforced" in caplog.text


FORKED = """
import os, threading
from emailsvc.clock import monotonic
from emailsvc.mail.line import Line, LineCut

Line().begin(monotonic() + 60)  # the thread that this starts does not come along
if os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
line = Line()
line.begin(monotonic() + 0.05)
try:
    line.call(lambda: threading.Event().wait(20))
except LineCut:
    os._exit(0)
os._exit(1)
"""


def test_the_watchdog_works_in_a_forked_process() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=30)


# races


def _claims(outcome: Outcome, copies: int) -> bool:
    """Whether what the transport says is true of what the server has."""
    if outcome is SENT:
        return copies == 1
    return copies <= 1 if outcome is UNCERTAIN else copies == 0


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("cut", ["stop", "deadline"])
def test_whenever_the_line_is_cut_the_outcome_is_true(server: Smtpd, pipelining: bool, cut: str) -> None:
    """Sixty cuts over the milliseconds that a conversation takes, on each side of the dot."""
    server.behaviour.pipelining = pipelining
    seen: set[Outcome] = set()
    dice = random.Random(4)
    for _ in range(60):
        transport, mail, moment = SmtpTransport(at(server)), a_message(), dice.uniform(0.0002, 0.006)
        if cut == "stop":
            sending = Sending(transport, mail)
            time.sleep(moment)
            transport.stop(grace=0)
            outcome = sending.outcome()
        else:
            outcome = send(transport, mail, timeout=moment, reply_timeout=dice.uniform(0.0002, 0.003)).outcome
        transport.close()
        server.wait(lambda: server.open_connections == 0)
        seen.add(outcome)
        assert _claims(outcome, server.copies(mail.message_id)), outcome
    assert seen <= ({SENT, CUT, UNCERTAIN} if cut == "stop" else {SENT, OUTAGE, DEFERRED, UNCERTAIN})


def _watchdogs() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "smtp-watchdog"}


def test_many_transports_share_one_watchdog(server: Smtpd) -> None:
    with ExitStack() as close:
        transports = [close.enter_context(closing(SmtpTransport(at(server)))) for _ in range(16)]
        assert send(transports[0]).outcome is SENT
        watchdogs = _watchdogs()
        assert {send(transport).outcome for transport in transports} == {SENT}
        server.script("*", *[Plan("rcpt", HANG)] * 16)
        sending = [Sending(transport, timeout=0.5) for transport in transports]
        assert {each.outcome() for each in sending} == {DEFERRED}
        assert _watchdogs() == watchdogs


def test_a_deadline_over_tls_is_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    certificate = Certificate(tmp_path_factory.mktemp("certificate"))
    with (
        Smtpd(tls=certificate.server) as server,
        closing(SmtpTransport(at(server, "implicit"), context=certificate.trusted)) as transport,
    ):
        for step, seconds, outcome in (("rcpt", 0.5, DEFERRED), ("dot", 10, UNCERTAIN)):
            assert send(transport).outcome is SENT
            server.script("*", Plan(step, DRIP, taken=False))
            assert send(transport, timeout=seconds, reply_timeout=0.5).outcome is outcome
