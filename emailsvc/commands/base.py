"""What the commands have in common: how they fail, what they show, and who gave them."""

from __future__ import annotations

import getpass
import json
import os
import sys

import click
import msgspec
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from emailsvc.context import service
from emailsvc.db import schema
from emailsvc.errors import ConfigurationError, ServiceError, brief


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
