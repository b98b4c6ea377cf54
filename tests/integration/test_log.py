"""What a delivery writes into the log."""

from __future__ import annotations

import json
import logging
import threading

import pytest
from sqlalchemy import Engine

from emailsvc.delivery.drain import Drain
from emailsvc.intake.payload import Rules, parse_email
from emailsvc.log import TextFormatter
from emailsvc.mail import Outcome, Result
from emailsvc.mail.memory import MemoryTransport
from emailsvc.outbox import SentTogether, accept
from emailsvc.settings.config import Config


def test_the_mail_servers_words_do_not_carry_a_recipient_into_the_log(
    engine: Engine, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = [
        Result(Outcome.REJECTED, "RCPT: 550 5.1.1 <Ada.Lovelace@example.com>: no such user", 550, "5.1.1"),
        Result(Outcome.DEFERRED, "RCPT: 451 4.7.1 ada.lovelace@example.com: come back later", 451, "4.7.1"),
        Result(Outcome.SENT, "250 2.0.0 queued for ada.lovelace@example.com", 250),
    ]
    for number in range(len(answers)):
        payload = {"email_id": f"{number}", "user": "ada.lovelace@example.com", "subject": "s", "body": "b"}
        accept(engine, parse_email(json.dumps(payload).encode(), Rules(frozenset())), config)
    drain = Drain(engine, config, MemoryTransport(answers), threading.Event(), lambda: None, SentTogether(engine))
    drain.run()
    lines = [TextFormatter().format(record) for record in caplog.records]
    assert [record.message for record in caplog.records] == ["dead_lettered", "deferred", "sent"]
    assert not [line for line in lines if "lovelace" in line.lower()]
    assert "no such user" in lines[0]
