"""Without REPORT_SECRETS nothing is added to the path of a webhook, or of a send."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, event

from emailsvc.app import transport_maker
from emailsvc.db import direct
from emailsvc.delivery.drain import Drain
from emailsvc.outbox import SentTogether
from emailsvc.settings.config import Config
from tests.emails import row
from tests.factories import payload

SECRETS = "mine:0123456789abcdef"


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Those that SQLAlchemy makes, and those that go to the driver as they are."""
    seen: list[str] = []
    run = direct.run

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(" ".join(statement.split()))

    def run_noted(connection: Any, statement: str, values: Any) -> Any:
        note(connection, None, statement)
        return run(connection, statement, values)

    event.listen(engine, "before_cursor_execute", note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "run", run_noted)
        patch.setattr(secrets, "randbelow", lambda _below: 0)  # by lot a claim begins with the lowest priority
        yield seen
    event.remove(engine, "before_cursor_execute", note)


def test_without_reports_no_statement_of_accepting_and_sending_knows_of_them(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config]
) -> None:
    """And with them, a webhook and a send make the very same ones, but for the claim's one more column."""
    seen = {}
    for kind, settings in (("off", {}), ("on", {"report_secrets": SECRETS})):
        config = make_config(**settings)
        app = make_app(config)
        engine = app.extensions["emailsvc"].engine
        with statements(engine) as made:
            for name in ("a", "b"):
                answer = app.test_client().post("/webhook/email", json=payload(f"{kind}-{name}"))
                assert answer.status_code == 202
            Drain(
                engine, config, transport_maker(config)(), threading.Event(), lambda: None, SentTogether(engine)
            ).run()
        seen[kind] = made
        assert row(engine, f"{kind}-b").status == "sent"
    assert not [statement for statement in seen["off"] if "reports" in statement or "maybe_sent" in statement]
    assert len(seen["off"]) >= 5, "two webhooks, a claim and two outcomes"
    assert [re.sub(r", (emails\.)?maybe_sent$", "", statement) for statement in seen["on"]] == seen["off"]
