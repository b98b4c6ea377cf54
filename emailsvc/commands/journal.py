"""`flask actions`: who did what, and what is still being done."""

from __future__ import annotations

from typing import Any

import click

from emailsvc import outbox, reports
from emailsvc.commands.base import Command, as_, show, tell
from emailsvc.commands.letters import ID, Moment
from emailsvc.context import service
from emailsvc.vocabulary import ActionKind


class Listing(Command, click.Group):
    """A command that has others."""


@click.group(cls=Listing, invoke_without_command=True)
@click.option("--kind", type=click.Choice([kind.value for kind in ActionKind]))
@click.option("--who")
@click.option("--since", type=Moment())
@click.option("--until", type=Moment())
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="next_cursor of the page before")
@click.pass_context
def actions(ctx: click.Context, /, kind: str | None, **given: Any) -> None:
    """Who did what, newest first."""
    if ctx.invoked_subcommand is None:
        show(reports.actions(service().engine, kind=None if kind is None else ActionKind(kind), **given))


@actions.command("show", cls=Command)
@click.argument("number", type=ID)
def show_(number: int) -> None:
    """One of them, and how far it is."""
    show(reports.action(service().engine, number))


@actions.command(cls=Command)
@click.argument("number", type=ID)
@as_
def stop(number: int, who: str) -> None:
    """Move no more of its dead letters."""
    left = outbox.stop(service().engine, number, who=who)
    answer = {"id": number, "state": "stopped", "left": left}
    tell(answer, f"action {number} is stopped, and {left} dead letters stay")
