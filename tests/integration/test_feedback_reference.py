"""Our reference on e-mails, by which reports find them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from emailsvc import outbox
from emailsvc.app import transport_maker
from emailsvc.delivery.drain import Drain
from emailsvc.feedback.reference import reference_of
from emailsvc.mail.transport import Transport
from emailsvc.outbox import SentTogether
from emailsvc.settings.config import Config
from tests.emails import row
from tests.factories import new_email
from tests.smtpd import Smtpd
from tests.stack import smtp_url

SECRETS = "mine:0123456789abcdef"
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def deliver(engine: Engine, make_config: Callable[..., Config], sink: Smtpd) -> Callable[..., Any]:
    """The one message that the server got, and the MAIL command before it."""

    def sent(settings: dict[str, str], **fields: Any) -> tuple[Any, str]:
        config = make_config(smtp_url=smtp_url(sink), **settings)
        outbox.accept(engine, new_email(**fields), config)
        transport = transport_maker(config)()
        drain(engine, config, transport)
        transport.close()
        (mail,) = [line for _, line in sink.commands if line.startswith("MAIL")]
        return sink.accepted[-1].message, mail

    return sent


def drain(engine: Engine, config: Config, transport: Transport) -> None:
    Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine)).run()


@pytest.fixture
def sink() -> Iterator[Smtpd]:
    with Smtpd(dsn=True) as server:
        yield server


def ours(engine: Engine) -> str:
    found = row(engine)
    return reference_of(found.id, found.message_id)


def test_it_is_the_envelopes_id_and_a_header(engine: Engine, deliver: Callable[..., Any]) -> None:
    message, mail = deliver({"report_secrets": SECRETS})
    assert message["X-Email-Ref"] == ours(engine)
    assert mail.endswith(f" ENVID={ours(engine)}")


def test_without_reports_there_is_neither(deliver: Callable[..., Any]) -> None:
    message, mail = deliver({})
    assert message["X-Email-Ref"] is None
    assert "ENVID" not in mail


def test_a_server_without_dsn_gets_the_header_alone(engine: Engine, deliver: Callable[..., Any], sink: Smtpd) -> None:
    sink.behaviour.dsn = False
    message, mail = deliver({"report_secrets": SECRETS})
    assert message["X-Email-Ref"] == ours(engine)
    assert "ENVID" not in mail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-PM-Metadata-ref", "{}"),
        ("X-SMTPAPI", '{{"unique_args": {{"ref": "{}"}}}}'),
        ("X-Mailgun-Variables", '{{"ref": "{}"}}'),
    ],
)
def test_a_provider_gets_the_header_that_it_hands_back(
    engine: Engine, deliver: Callable[..., Any], name: str, value: str
) -> None:
    message, _ = deliver({"report_secrets": SECRETS, "report_header": name})
    assert message[name] == value.format(ours(engine))
    assert message["X-Email-Ref"] is None


def test_a_client_that_gives_that_header_keeps_its_own(deliver: Callable[..., Any]) -> None:
    own = {"x-smtpapi": '{"category": "orders"}'}
    message, mail = deliver({"report_secrets": SECRETS, "report_header": "X-SMTPAPI"}, headers=own)
    assert message.get_all("X-SMTPAPI") == [own["x-smtpapi"]]
    assert "ENVID=" in mail
