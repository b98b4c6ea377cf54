"""The `flask` commands: each calls the same functions as the HTTP routes."""

from __future__ import annotations

import json
import platform
import uuid

import click
from flask import Flask

from emailsvc import __version__, outbox, reports
from emailsvc.commands import diagnosis
from emailsvc.commands.base import Command, Printing, as_, progress, show, tell
from emailsvc.commands.finding import emails
from emailsvc.commands.following import follow
from emailsvc.commands.journal import actions
from emailsvc.commands.letters import dead_letters
from emailsvc.commands.start import run_everything
from emailsvc.context import service
from emailsvc.db import schema
from emailsvc.intake import signing
from emailsvc.intake.payload import Rules, parse_email


def register(app: Flask) -> None:
    for command in (
        *(run_everything, stats, pause, resume, end_outage, check, send_test, erase, secret, dead_letters),
        *(actions, emails, version),
    ):
        app.cli.add_command(command)


@click.command(cls=Command)
def stats() -> None:
    """Totals and the state of delivery, as GET /stats shows them."""
    show(reports.stats(service().engine))


@click.command(cls=Command)
@as_
def pause(who: str) -> None:
    """Start no further conversation until `flask resume`."""
    outbox.pause(service().engine, "flask pause", who=who)
    show(reports.delivery_state(service().engine))


@click.command(cls=Command)
@as_
def resume(who: str) -> None:
    """End a pause."""
    outbox.resume(service().engine, who=who)
    service().wake()
    show(reports.delivery_state(service().engine))


@click.command("end-outage", cls=Command)
@as_
def end_outage(who: str) -> None:
    """End an outage without waiting for a probe. What was refused so far no longer counts towards the next."""
    own = service()
    seconds = outbox.end_outage(own.engine, who=who)
    own.wake()
    ended = "There was no outage." if seconds is None else f"Ended an outage of {seconds:.0f} s."
    click.echo(ended, err=True)
    show(reports.delivery_state(own.engine))


@click.command(cls=Printing)
def check() -> None:
    """Look at configuration, database, Redis, SMTP login and the invariant; exit 1 when something is wrong."""
    findings = diagnosis.diagnose(service())
    tell({"findings": findings}, *(f"{one.level:7} {one.subject}: {one.text}" for one in findings))
    if any(finding.level == "wrong" for finding in findings):
        raise SystemExit(1)


@click.command(cls=Printing)
def version() -> None:
    """What runs here. Needs no database."""
    runs = {"emailsvc": __version__, "schema": schema.newest(), "Python": platform.python_version()}
    tell(runs, ", ".join(f"{name} {number}" for name, number in runs.items()))


@click.command("send-test", cls=Command)
@click.argument("address")
@click.option("--wait", is_flag=True, help="tell each step, until it is sent (exit status 0) or given up (1)")
def send_test(address: str, wait: bool) -> None:
    """Accept one test e-mail to ADDRESS, as a webhook would; the worker sends it."""
    own = service()
    payload = {
        "email_id": f"send-test-{uuid.uuid4()}",
        "user": address,
        "subject": "emailsvc: a test",
        "body": "This message was sent by `flask send-test`.\n",
    }
    rules = Rules(own.config.from_domains, own.config.idempotency_header)
    accepted = outbox.accept(own.engine, parse_email(json.dumps(payload).encode(), rules), own.config)
    own.wake()
    words = f"accepted as {accepted.email_id}; a running worker sends it"
    tell({"status": "accepted", "email_id": accepted.email_id, "state": accepted.state}, words)
    if wait:
        follow(own.engine, accepted.email_id)


@click.command(cls=Command)
@click.argument("address")
@as_
def erase(address: str, who: str) -> None:
    """Forget ADDRESS (in capitals or not): cancel what waits, scrub what was sent, mark what is being sent.

    The ids stay. If it is cut short, run it again: it goes on where it stopped.
    """
    count = outbox.erase(service().engine, address, progress, who=who)
    tell({"erased": count}, f"{count} e-mail{'' if count == 1 else 's'} erased")


@click.command(cls=Printing)
def secret() -> None:
    """Print a new secret for WEBHOOK_SECRETS."""
    made = signing.make_secret()
    tell({"secret": made}, made)
