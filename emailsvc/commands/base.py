"""What the commands have in common: how they fail, what they show, and who gave them."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
from collections.abc import Sequence

import click
import msgspec
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from emailsvc.commands.terminal import table
from emailsvc.context import service
from emailsvc.db import schema
from emailsvc.errors import ConfigurationError, ServiceError, brief

AS_JSON = "emailsvc.json"


class Command(click.Command):
    """Works on the database, whose schema it ensures; says what is wrong in one sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            schema.ensure(current_app._get_current_object(), service().engine)  # type: ignore[attr-defined]
            return super().invoke(ctx)
        except ServiceError as exc:
            raise click.ClickException(exc.detail) from exc
        except ConfigurationError as exc:
            raise click.ClickException(str(exc)) from exc
        except SQLAlchemyError as exc:
            raise click.ClickException(f"The database cannot be used: {brief(exc)}; check DATABASE_URL.") from exc


def show(value: object) -> None:
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))


def show_page(rows: Sequence[msgspec.Struct], page: msgspec.Struct, next_cursor: str | None) -> None:
    """A table on a terminal, unless ``--json`` is given; the page as JSON for programs."""
    if click.get_current_context().meta.get(AS_JSON) or not sys.stdout.isatty():
        show(page)
        return
    for line in table([msgspec.to_builtins(row) for row in rows], shutil.get_terminal_size().columns):
        click.echo(line)
    if next_cursor is not None:
        click.echo(f"more: --cursor {next_cursor}", err=True)


def _as_json(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    ctx.meta[AS_JSON] = wanted


json_ = click.option("--json", is_flag=True, expose_value=False, callback=_as_json, help="JSON on a terminal, too")


def progress(done: int) -> None:
    """On a terminal, one line that is written over; nothing in a pipe."""
    if sys.stderr.isatty():
        click.echo(f"{done:,} so far\r", nl=False, err=True)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no entry
        return f"user {os.getuid()}"


as_ = click.option("--as", "who", default=_login_name, help="whom the journal names  [default: the login name]")
