"""`flask actions`: who did what, and what is still being done."""

from __future__ import annotations

import click

from emailsvc import outbox, reports
from emailsvc.commands.base import Command, as_, json_, show, show_page
from emailsvc.commands.letters import ID
from emailsvc.context import service
from emailsvc.vocabulary import ActionKind


class Listing(Command, click.Group):
    """A command that has others."""


@click.group(cls=Listing, invoke_without_command=True)
@click.option("--kind", type=click.Choice([kind.value for kind in ActionKind]))
@click.option("--who")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="next_cursor of the page before")
@json_
@click.pass_context
def actions(ctx: click.Context, kind: str | None, who: str | None, limit: int, cursor: str | None) -> None:
    """Who did what, newest first."""
    if ctx.invoked_subcommand is None:
        kinds = None if kind is None else ActionKind(kind)
        page = reports.actions(service().engine, kind=kinds, who=who, limit=limit, cursor=cursor)
        show_page(page.actions, page, page.next_cursor)


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
    click.echo(f"action {number} is stopped, and {left} dead letters stay")
