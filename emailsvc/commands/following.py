"""An e-mail's timeline, told while it happens."""

from __future__ import annotations

import time

import click
import msgspec
from sqlalchemy import Engine

from emailsvc import reports
from emailsvc.clock import monotonic
from emailsvc.commands.base import tell
from emailsvc.commands.terminal import event_words, shown
from emailsvc.vocabulary import State

WAIT_SECONDS = 120.0
LOOK_SECONDS = 0.2


def follow(engine: Engine, email_id: str) -> None:
    """Until it is sent. Exits with 1 when it was given up or cancelled, or after ``WAIT_SECONDS``."""
    told, ends_at = 0, monotonic() + WAIT_SECONDS
    while True:
        found = reports.email(engine, email_id)
        for event in found.timeline[told:]:
            words = shown(event_words(msgspec.to_builtins(event)))
            tell(event, f"{event.at} {event.event} {words}".rstrip())
        told = len(found.timeline)
        if found.state is State.SENT:
            return
        if found.state in (State.FAILED, State.CANCELLED):
            raise SystemExit(1)
        if monotonic() > ends_at:
            raise click.ClickException(f"After {WAIT_SECONDS:g} s it is {found.state}: see `flask check`.")
        time.sleep(LOOK_SECONDS)
