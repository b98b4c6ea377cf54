"""What a delivery writes into the log."""

from __future__ import annotations

import logging
import threading

import pytest
from sqlalchemy import Engine

from emailsvc.delivery.drain import Drain
from emailsvc.log import TextFormatter
from emailsvc.mail import Outcome, Result
from emailsvc.mail.memory import MemoryTransport
from emailsvc.outbox import SentTogether
from emailsvc.settings.config import Config
from tests.emails import accept


def test_the_mail_servers_words_do_not_carry_a_recipient_into_the_log(
    engine: Engine, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = [
        Result(Outcome.REJECTED, "RCPT: 550 5.1.1 <Ada.Lovelace@example.com>: no such user", 550, "5.1.1"),
        Result(Outcome.DEFERRED, "RCPT: 451 4.7.1 ada.lovelace@example.com: come back later", 451, "4.7.1"),
        Result(Outcome.SENT, "250 2.0.0 queued for ada.lovelace@example.com", 250),
    ]
    accept(engine, config, "first", "second", "third", user="ada.lovelace@example.com")
    drain = Drain(engine, config, MemoryTransport(answers), threading.Event(), lambda: None, SentTogether(engine))
    drain.run()
    lines = [TextFormatter().format(record) for record in caplog.records]
    assert [record.message for record in caplog.records] == ["dead_lettered", "deferred", "sent"]
    assert not [line for line in lines if "lovelace" in line.lower()]
    assert "no such user" in lines[0]
    assert 'text="250 2.0.0 queued for' in lines[2]
