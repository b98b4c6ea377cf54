"""What each answer of a mail server means, with and without pipelining, against a real one that misbehaves."""

from __future__ import annotations

import logging
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest

from emailsvc.clock import monotonic
from emailsvc.mail import Outcome
from emailsvc.mail import smtp as smtp_module
from emailsvc.mail import transport as transport_module
from emailsvc.mail.connection import ConnectFailed, Connection
from emailsvc.mail.line import Line
from emailsvc.mail.smtp import SmtpTransport, check, try_sender
from emailsvc.settings.parsers import SmtpServer
from tests.factories import a_message
from tests.smtpd import DROP, HANG, Action, Drip, Later, Plan, Smtpd
from tests.transport import Certificate, at, send

SENT, DEFERRED, REJECTED = Outcome.SENT, Outcome.DEFERRED, Outcome.REJECTED
OUTAGE, UNCERTAIN, CUT = Outcome.OUTAGE, Outcome.UNCERTAIN, Outcome.CUT


@pytest.fixture(params=[True, False], ids=["pipelining", "step by step"])
def server(request: pytest.FixtureRequest) -> Iterator[Smtpd]:
    with Smtpd(pipelining=request.param) as server:
        yield server


@pytest.fixture
def connect(server: Smtpd) -> Iterator[Callable[..., SmtpTransport]]:
    made: list[SmtpTransport] = []

    def make(**changes: object) -> SmtpTransport:
        context = changes.pop("context", None)
        made.append(SmtpTransport(at(server, **changes), idempotency_header="X-Id", context=context))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def transport(connect: Callable[..., SmtpTransport]) -> SmtpTransport:
    return connect()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


# the table


@pytest.mark.parametrize(
    ("step", "reply", "outcome"),
    [
        ("mail", "451 4.3.0 later", DEFERRED),
        ("mail", "550 5.7.1 no", REJECTED),
        ("mail", "421 4.3.2 closing", OUTAGE),
        ("mail", "530 5.7.0 log in first", OUTAGE),
        ("mail", "535 5.7.8 who?", OUTAGE),
        ("mail", "538 5.7.11 encrypt first", OUTAGE),
        ("mail", "354 what?", DEFERRED),
        ("mail", "what?", DEFERRED),
        ("rcpt", "450 4.7.1 greylisted", DEFERRED),
        ("rcpt", "421 4.3.2 closing", DEFERRED),
        ("rcpt", "550 5.1.1 no such user", REJECTED),
        ("rcpt", "530 5.7.0 log in first", OUTAGE),
        ("data", "451 4.3.0 later", DEFERRED),
        ("data", "421 4.3.2 closing", DEFERRED),
        ("data", "554 5.5.1 no", REJECTED),
        ("data", "250 what?", DEFERRED),
        ("dot", "250 ok", SENT),
        ("dot", "251 forwarded", SENT),
        ("dot", "200 ok", SENT),
        ("dot", ("250-ok", "250 queued"), SENT),
        ("dot", "451 4.3.0 later", DEFERRED),
        ("dot", "421 4.3.2 closing", DEFERRED),
        ("dot", "552 5.3.4 too big", REJECTED),
        ("dot", "530 5.7.1 policy", REJECTED),
        ("dot", "354 go on", UNCERTAIN),
        ("dot", "150 hm", UNCERTAIN),
        ("dot", "999 hm", UNCERTAIN),
        ("dot", "what?", UNCERTAIN),
        ("dot", "2500 ok", UNCERTAIN),
        ("dot", ("250-ok", "550 no"), UNCERTAIN),
        ("dot", (b"250 ok", DROP), UNCERTAIN),
        ("dot", (b"250-ok\r\n", DROP), UNCERTAIN),
        ("dot", (b"25", DROP), UNCERTAIN),
        ("dot", DROP, UNCERTAIN),
    ],
)
def test_each_reply_means_what_the_table_says(
    server: Smtpd, transport: SmtpTransport, step: str, reply: Action, outcome: Outcome
) -> None:
    server.script("*", Plan(step, reply))
    mail = a_message()
    result = send(transport, mail)
    assert result.outcome is outcome, result
    if outcome is SENT:
        assert server.copies(mail.message_id) == 1
    elif outcome is not UNCERTAIN:
        assert server.copies(mail.message_id) == 0
    # Whatever it was, the next mail is not touched by it.
    following = a_message()
    assert send(transport, following).outcome is SENT
    assert server.copies(following.message_id) == 1
    assert outcome is not UNCERTAIN or server.connections == 2, "a belated reply must not be taken for the next mail's"


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
def test_a_connection_lost_before_the_dot_is_deferred(server: Smtpd, transport: SmtpTransport, step: str) -> None:
    server.script("*", Plan(step, DROP))
    result = send(transport)
    assert result.outcome is DEFERRED
    assert "connection lost" in result.reply
    assert server.taken == 0


def test_a_connection_lost_within_the_message_is_deferred(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("data", ("354 go", DROP)))
    result = send(transport, a_message(body="x" * 5_000_000))
    assert result.outcome is DEFERRED
    assert server.taken == 0


def test_the_result_carries_the_servers_words_and_codes(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("rcpt", ("550-5.1.1 no such", "550 5.1.1 user here")))
    result = send(transport)
    assert (result.code, result.enhanced) == (550, "5.1.1")
    assert result.reply == "RCPT: 550 5.1.1 no such 5.1.1 user here"


@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "dot"])
def test_the_result_carries_the_command_that_was_refused(server: Smtpd, transport: SmtpTransport, step: str) -> None:
    server.script("*", Plan(step, "550 5.7.1 no"))
    assert send(transport).command == {"dot": "."}.get(step, step.upper())


def test_the_servers_words_are_bounded_and_printable(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("rcpt", b"550 5.1.1 \x1b[31m\x00\xff\xe2\x80\xae" + b"x" * 3000 + b"\r\n"))
    result = send(transport)
    assert result.outcome is REJECTED
    assert result.reply.isprintable()
    assert len(result.reply) < 600


# connecting


@pytest.mark.parametrize(
    "behaviour",
    [
        {"greeting": "421 4.3.2 not now"},
        {"greeting": "554 5.3.2 not you"},
        {"greeting": "hello"},
        {"greeting": DROP},
        {"ehlo": "550 5.3.3 no"},
        {"ehlo": "421 4.3.2 closing"},
        {"ehlo": DROP},
    ],
    ids=str,
)
def test_a_server_that_does_not_come_to_mail_is_an_outage(
    server: Smtpd, transport: SmtpTransport, behaviour: dict[str, Action]
) -> None:
    for name, value in behaviour.items():
        setattr(server.behaviour, name, value)
    assert send(transport).outcome is OUTAGE
    assert server.seen("MAIL") == 0


def test_a_refused_connection_is_an_outage_that_names_host_and_port() -> None:
    with Smtpd() as gone:
        server = at(gone)
    result = send(SmtpTransport(server))
    assert result.outcome is OUTAGE
    assert result.reply.startswith(f"127.0.0.1:{server.port}: connecting: ConnectionRefusedError")


def test_a_name_that_does_not_exist_is_an_outage(server: Smtpd) -> None:
    result = send(SmtpTransport(at(server, host="mail.invalid")))
    assert result.outcome is OUTAGE
    assert "mail.invalid" in result.reply


@pytest.mark.parametrize("password", ["right", "wrong"])
def test_login(server: Smtpd, connect: Callable[..., SmtpTransport], password: str) -> None:
    server.behaviour.login, server.behaviour.require_login = ("shop", "right"), True
    result = send(connect(user="shop", password=password))
    assert result.outcome is (SENT if password == "right" else OUTAGE)
    assert result.code == (250 if password == "right" else 535)


@pytest.mark.parametrize("auth", ["535 5.7.8 no", "454 4.7.0 later", DROP, ("535 5.7.8 no", DROP)], ids=str)
def test_a_failed_login_is_an_outage(server: Smtpd, connect: Callable[..., SmtpTransport], auth: Action) -> None:
    server.behaviour.login, server.behaviour.auth = ("shop", "right"), auth
    result = send(connect(user="shop", password="right"))
    assert result.outcome is OUTAGE
    assert auth == DROP or result.code in (535, 454)


def test_a_login_that_the_server_does_not_offer_is_an_outage(connect: Callable[..., SmtpTransport]) -> None:
    result = send(connect(user="shop", password="right"))
    assert result.outcome is OUTAGE
    assert "does not offer" in result.reply


def test_a_password_beyond_ascii_is_an_outage_that_does_not_show_it(
    server: Smtpd, connect: Callable[..., SmtpTransport]
) -> None:
    server.behaviour.login = ("shop", "x")
    result = send(connect(user="shop", password="pässwort"))
    assert result.outcome is OUTAGE
    assert "must be ASCII" in result.reply
    assert "ä" not in result.reply
    assert "xe4" not in result.reply


def test_starttls_that_is_not_offered_is_an_outage_and_nothing_is_sent_in_the_clear(
    server: Smtpd, connect: Callable[..., SmtpTransport]
) -> None:
    server.behaviour.login = ("shop", "right")
    result = send(connect(tls="starttls", user="shop", password="right"))
    assert result.outcome is OUTAGE
    assert "STARTTLS: required, but the server does not offer it" in result.reply
    assert server.seen("AUTH") == server.seen("MAIL") == 0


def test_starttls_is_used_and_logs_in_behind_it(
    server: Smtpd, connect: Callable[..., SmtpTransport], certificate: Certificate
) -> None:
    server.behaviour.starttls, server.behaviour.login = certificate.server, ("shop", "right")
    transport = connect(tls="starttls", user="shop", password="right", context=certificate.trusted)
    assert [send(transport).outcome for _ in range(3)] == [SENT] * 3
    assert server.connections == 1
    verbs = [line.split()[0].upper() for _, line in server.commands]
    assert verbs[:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]


def test_implicit_tls_is_used(certificate: Certificate) -> None:
    with _over("implicit", certificate) as (_, transport):
        assert [send(transport).outcome for _ in range(3)] == [SENT] * 3


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_certificate_that_nobody_vouches_for_is_an_outage(certificate: Certificate, tls: str) -> None:
    with Smtpd(**{"starttls" if tls == "starttls" else "tls": certificate.server}) as server:  # type: ignore[arg-type]
        result = send(SmtpTransport(at(server, tls)))
        assert result.outcome is OUTAGE
        assert "certificate" in result.reply.lower()
        assert server.seen("MAIL") == 0


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_certificate_for_another_host_is_an_outage(tmp_path: Path, tls: str) -> None:
    other = Certificate(tmp_path, "DNS:other.example")
    with Smtpd(**{"starttls" if tls == "starttls" else "tls": other.server}) as server:  # type: ignore[arg-type]
        result = send(SmtpTransport(at(server, tls), context=other.trusted))
        assert result.outcome is OUTAGE
        assert "127.0.0.1" in result.reply


# kept connections


def test_a_connection_is_kept_for_the_next_mail(server: Smtpd, transport: SmtpTransport) -> None:
    assert [send(transport).outcome for _ in range(5)] == [SENT] * 5
    assert server.connections == 1


@pytest.mark.parametrize("limit", [1, 3])
def test_a_server_that_closes_after_some_mails_is_reconnected_silently(
    server: Smtpd, transport: SmtpTransport, limit: int
) -> None:
    server.behaviour.mails_per_connection = limit
    mails = [a_message() for _ in range(7)]
    assert [send(transport, mail).outcome for mail in mails] == [SENT] * 7
    assert all(server.copies(mail.message_id) == 1 for mail in mails)


LAST_WORDS = ["421 4.4.2 idle", "451 4.4.2 Timeout", "554 5.4.2 idle too long", "what?"]


@pytest.mark.parametrize("farewell", [DROP, *LAST_WORDS])
def test_a_kept_connection_that_ended_meanwhile_is_reconnected_silently(
    server: Smtpd, transport: SmtpTransport, farewell: Action
) -> None:
    """What came together with the reply to the dot lies in the reader's buffer, or in the socket."""
    server.script("*", Plan("dot", ("250 ok", farewell), taken=True))
    assert [send(transport).outcome for _ in range(2)] == [SENT, SENT]
    assert (server.connections, server.taken) == (2, 2)


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
@pytest.mark.parametrize("closes", [True, False], ids=["and closes", "and waits"])
@pytest.mark.parametrize("words", [*LAST_WORDS, "451 no code", "250 2.0.0 stray", "half a li"])
def test_what_a_server_says_unasked_is_not_charged_to_the_next_mail(
    certificate: Certificate, tls: str, words: str, closes: bool
) -> None:
    """Said while the connection rests, as mail servers do that close an idle one."""
    said = words.encode() + b"\r\n" * (words != "half a li")
    with _over(tls, certificate) as (server, transport):
        assert send(transport).outcome is SENT
        (session,) = server.sessions
        server.script("*", Plan("dot", ("250 ok", Later(0.05), said, *[DROP] * closes), taken=True))
        assert send(transport).outcome is SENT
        server.wait(lambda: session.transport.is_closing() if closes else not session.busy)
        assert send(transport).outcome is SENT
        assert (server.connections, server.taken) == (2, 3)


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
def test_a_connection_that_is_quiet_is_kept_over_tls_too(certificate: Certificate, tls: str) -> None:
    with _over(tls, certificate) as (server, transport):
        assert [send(transport).outcome for _ in range(4)] == [SENT] * 4
        assert server.connections == 1


@contextmanager
def _over(tls: str, certificate: Certificate) -> Iterator[tuple[Smtpd, SmtpTransport]]:
    secure = {"implicit": {"tls": certificate.server}, "starttls": {"starttls": certificate.server}}
    with (
        Smtpd(**secure.get(tls, {})) as server,
        closing(SmtpTransport(at(server, tls), context=certificate.trusted)) as transport,
    ):
        yield server, transport


@pytest.mark.parametrize("words", ["451 4.4.2 Timeout", "554 5.4.2 idle too long"])
@pytest.mark.parametrize("step", ["mail", "rset"])
def test_a_bad_connection_as_the_first_reply_of_a_kept_one_is_its_end(
    server: Smtpd, transport: SmtpTransport, step: str, words: str
) -> None:
    """The server's words and our command crossed on their way."""
    if step == "rset":
        server.script("ada@example.com", Plan("rcpt", "550 5.1.1 unknown"))
        server.behaviour.rset = (words, DROP)
    send(transport)
    if step == "mail":
        server.script("*", Plan("mail", (words, DROP)))
    assert send(transport).outcome is SENT
    assert server.connections == 2


@pytest.mark.parametrize(("words", "outcome"), [("451 4.4.2 Timeout", DEFERRED), ("554 5.4.2 no", REJECTED)])
def test_a_bad_connection_that_is_new_counts(
    server: Smtpd, transport: SmtpTransport, words: str, outcome: Outcome
) -> None:
    send(transport)
    server.script("*", *[Plan("mail", words)] * 2)
    assert send(transport).outcome is outcome
    assert server.connections == 2


def test_a_readable_connection_that_holds_no_words_is_kept(certificate: Certificate) -> None:
    """A TLS record of the protocol's own (session tickets, here new keys) makes the socket readable."""
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-crlf", "-cert", certificate.file]
    with subprocess.Popen([*command, "-key", certificate.key], stdin=PIPE, stdout=PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = next(int(line.rpartition(":")[2]) for line in server.stdout if line.startswith("ACCEPT"))
        line = Line()
        line.begin(monotonic() + 20)
        with closing(Connection(SmtpServer("127.0.0.1", port, "implicit"), line, certificate.trusted)) as connection:
            print("220 hello", "250 mail.example.test", sep="\n", file=server.stdin, flush=True)
            connection.open()
            assert connection.unasked() is None
            for words, unasked in (("k", None), ("451 4.4.2 Timeout", "451 4.4.2 Timeout")):  # "k" updates the keys
                print(words, file=server.stdin, flush=True)
                assert select.select([connection.sock], [], [], 20)[0]
                assert connection.unasked() == unasked


def test_a_server_that_restarted_is_reconnected_silently(server: Smtpd, transport: SmtpTransport) -> None:
    send(transport)
    server.drop_all()
    assert send(transport).outcome is SENT


def test_a_server_that_went_away_is_an_outage_on_the_new_connection(server: Smtpd, transport: SmtpTransport) -> None:
    send(transport)
    server.close_door()
    server.drop_all()
    assert send(transport).outcome is OUTAGE


def test_a_server_that_closes_on_the_new_connection_too_is_an_outage(server: Smtpd, transport: SmtpTransport) -> None:
    send(transport)
    server.script("*", Plan("mail", "421 4.3.2 closing"), Plan("mail", "421 4.3.2 closing"))
    assert send(transport).outcome is OUTAGE
    assert server.connections == 2


def test_a_login_that_ran_out_is_renewed_on_a_new_connection(server: Smtpd, transport: SmtpTransport) -> None:
    send(transport)
    server.script("*", Plan("mail", "530 5.7.0 log in first"))
    assert send(transport).outcome is SENT


def test_a_later_failure_on_a_kept_connection_is_no_reconnect(server: Smtpd, transport: SmtpTransport) -> None:
    send(transport)
    server.script("*", Plan("rcpt", DROP))
    assert send(transport).outcome is DEFERRED
    assert server.connections == 1


def test_a_drop_after_the_dot_on_a_kept_connection_is_never_sent_again(server: Smtpd, transport: SmtpTransport) -> None:
    send(transport)
    server.script("*", Plan("dot", DROP, taken=True))
    mail = a_message()
    assert send(transport, mail).outcome is UNCERTAIN
    assert server.copies(mail.message_id) == 1


def test_a_refused_mail_leaves_nothing_for_the_next_one(server: Smtpd, transport: SmtpTransport) -> None:
    server.behaviour.refuse = lambda recipient: "550 5.1.1 unknown" if recipient.startswith("nobody") else None
    assert send(transport, a_message(recipient="nobody@example.com")).outcome is REJECTED
    mail = a_message(recipient="grace@example.com")
    assert send(transport, mail).outcome is SENT
    assert server.accepted[0].recipients == ("grace@example.com",)
    assert server.connections == 1


@pytest.mark.parametrize("reply", ["502 5.5.1 no", "421 4.3.2 closing", DROP], ids=str)
def test_trouble_in_rset_costs_no_mail_anything(server: Smtpd, transport: SmtpTransport, reply: Action) -> None:
    server.behaviour.rset = reply
    server.script("*", Plan("rcpt", "550 5.1.1 unknown"))
    assert [send(transport).outcome for _ in range(3)] == [REJECTED, SENT, SENT]
    assert server.taken == 2


@pytest.mark.parametrize("reply", ["421 4.3.2 closing", "500 what?", "what?", DROP, HANG, Drip("221 bye")], ids=str)
def test_trouble_in_quit_is_no_outcome(server: Smtpd, transport: SmtpTransport, reply: Action) -> None:
    server.behaviour.quit = reply
    assert send(transport).outcome is SENT
    transport.close()
    transport.close()


def test_a_connection_is_changed_after_some_mails(
    server: Smtpd, transport: SmtpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp_module, "EMAILS_PER_CONNECTION", 2)
    assert [send(transport).outcome for _ in range(5)] == [SENT] * 5
    assert (server.connections, server.seen("QUIT")) == (3, 2)


def test_an_idle_connection_is_closed_and_the_next_mail_takes_a_new_one(
    server: Smtpd, transport: SmtpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "IDLE_SECONDS", 0.05)
    assert send(transport).outcome is SENT
    server.wait(lambda: server.open_connections == 0)
    assert send(transport).outcome is SENT


# pipelining


@pytest.mark.parametrize(("reply", "outcome"), [("550 5.1.1 unknown", REJECTED), ("450 4.2.1 later", DEFERRED)])
def test_a_354_behind_a_refused_recipient_is_left_with_a_lone_dot(
    server: Smtpd, transport: SmtpTransport, reply: str, outcome: Outcome
) -> None:
    server.behaviour.data_despite_refusal = True
    server.script("*", Plan("rcpt", reply))
    result = send(transport)
    assert result.outcome is outcome
    assert str(result.code) in reply
    assert send(transport).outcome is SENT
    assert (server.taken, server.connections) == (1, 1)


def test_a_354_behind_a_refused_sender_never_becomes_an_empty_message(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("mail", "550 5.1.8 bad sender", taken=True))
    assert send(transport).outcome is REJECTED
    assert send(transport).outcome is SENT
    assert server.taken == 1


def test_the_envelope_is_one_write_only_where_the_server_allows_it(server: Smtpd, transport: SmtpTransport) -> None:
    server.script("*", Plan("mail", HANG))
    sending = threading.Thread(target=send, args=(transport,))
    sending.start()
    server.wait(lambda: server.seen("MAIL") == 1)
    waiting = [bytes(session.buffer) for session in server.sessions]
    transport.stop(0)
    sending.join()
    assert waiting == [b"RCPT TO:<ada@example.com>\r\nDATA\r\n" if server.behaviour.pipelining else b""]


# the message on its way


def test_the_message_is_there_when_the_dot_is_announced_and_the_dot_is_not(
    server: Smtpd, transport: SmtpTransport
) -> None:
    seen: list[bool] = []

    def passing_dot() -> None:
        server.wait(lambda: any(bytes(each.buffer).endswith(b"the end\r\n") for each in server.sessions))
        seen.append(server.taken == 0)

    assert send(transport, a_message(body="the end\n"), passing_dot=passing_dot).outcome is SENT
    assert seen == [True]


def test_a_deadline_before_the_dot_cuts_and_the_server_has_nothing(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport).outcome is SENT  # so that connecting takes nothing of the time
    result = send(transport, timeout=0.4, passing_dot=lambda: time.sleep(0.5))
    assert result.outcome is DEFERRED
    assert "deadline" in result.reply
    assert send(transport).outcome is SENT
    assert server.taken == 2


def test_an_exception_before_the_dot_is_rejected_with_its_name(server: Smtpd, transport: SmtpTransport) -> None:
    def passing_dot() -> None:
        raise ZeroDivisionError("oops")

    result = send(transport, passing_dot=passing_dot)
    assert result.outcome is REJECTED
    assert "ZeroDivisionError: oops" in result.reply
    assert server.taken == 0


def test_a_mail_that_cannot_be_built_is_rejected_without_a_connection(server: Smtpd, transport: SmtpTransport) -> None:
    result = send(transport, a_message(subject="a\r\nBcc: eve@example.com"))
    assert result.outcome is REJECTED
    assert "Unbuildable" in result.reply
    assert server.connections == 0


def test_leading_dots_arrive(server: Smtpd, transport: SmtpTransport) -> None:
    body = ".\n..\n.a\nb.\n.\n"
    assert send(transport, a_message(body=body)).outcome is SENT
    assert server.accepted[0].message.get_content().replace("\r\n", "\n") == body


def test_an_international_address_needs_smtputf8(server: Smtpd, transport: SmtpTransport) -> None:
    server.behaviour.smtputf8 = False
    result = send(transport, a_message(recipient="jürgen@example.com"))
    assert result.outcome is REJECTED
    assert "SMTPUTF8" in result.reply
    assert server.seen("MAIL") == 0


def test_an_international_address_is_sent_where_smtputf8_is_offered(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport, a_message(recipient="jürgen@bücher.example")).outcome is SENT
    assert server.accepted[0].recipients == ("jürgen@xn--bcher-kva.example",)
    assert any(line.startswith("MAIL") and line.endswith("SMTPUTF8") for _, line in server.commands)


def test_smtputf8_is_not_asked_for_without_need(server: Smtpd, transport: SmtpTransport) -> None:
    assert send(transport, a_message(recipient="ada@bücher.example", subject="Grüße")).outcome is SENT
    assert not any("SMTPUTF8" in line for _, line in server.commands)


def test_the_retry_of_a_mail_carries_the_same_ids(server: Smtpd, transport: SmtpTransport) -> None:
    server.behaviour.id_header = "X-Id"
    server.script("*", Plan("dot", DROP, taken=True))
    mail = a_message(email_id="order-7")
    assert [send(transport, mail).outcome for _ in range(2)] == [UNCERTAIN, SENT]
    assert (server.copies(mail.message_id), server.copies_by_header("order-7")) == (2, 2)


# check, and what is kept quiet


def test_check_returns_the_greeting(server: Smtpd) -> None:
    server.behaviour.login = ("shop", "right")
    assert check(at(server, user="shop", password="right")) == "mail.example.test ESMTP"
    assert server.seen("QUIT") == 1
    assert server.seen("MAIL") == 0


def test_check_says_what_is_wrong(server: Smtpd) -> None:
    server.behaviour.login = ("shop", "right")
    with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:\d+: AUTH: 535 5\.7\.8 user or password is wrong"):
        check(at(server, user="shop", password="wrong"))


def test_a_sender_is_tried_and_nothing_is_sent(server: Smtpd) -> None:
    assert try_sender(at(server), "bounces@example.com") is None
    assert (server.seen("MAIL"), server.seen("RCPT"), server.seen("QUIT")) == (1, 0, 1)
    server.script("*", Plan("mail", "553 5.7.1 not yours"))
    assert try_sender(at(server), "bounces@example.com") == "553 5.7.1 not yours"


def test_bounces_go_to_their_own_address_and_the_recipient_sees_the_from_address(server: Smtpd) -> None:
    transport = SmtpTransport(at(server), bounce_address="bounces@example.com")
    assert send(transport, a_message(from_address="shop@example.com")).outcome is SENT
    transport.close()
    (taken,) = server.accepted
    assert (taken.sender, taken.message["From"]) == ("bounces@example.com", "shop@example.com")


def test_the_log_shows_no_password_address_or_body(
    server: Smtpd, connect: Callable[..., SmtpTransport], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.behaviour.login = ("shop-user", "passw0rd")
    transport = connect(user="shop-user", password="passw0rd")
    server.script("*", Plan("dot", ("250 ok", DROP), taken=True), Plan("rcpt", "550 <ada@example.com> unknown"))
    for _ in range(3):
        send(transport, a_message(body="the body"))
    server.behaviour.quit = DROP
    transport.close()
    assert "passw0rd" not in caplog.text + repr(transport) + repr(at(server, password="passw0rd"))
    assert "ada@example" not in caplog.text
    assert "the body" not in caplog.text


def test_no_host_name_is_looked_up_for_ehlo(
    server: Smtpd, transport: SmtpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> str:
        raise AssertionError("looked up")

    monkeypatch.setattr(socket, "getfqdn", never)
    assert send(transport).outcome is SENT
