"""What the commands have in common: how they fail, what they show, and who gave them."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
from typing import Any

import click
import msgspec
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from emailsvc.commands.terminal import sheet, wrapped
from emailsvc.context import service
from emailsvc.db import schema
from emailsvc.errors import ConfigurationError, ServiceError, brief

AS_JSON, IN_PROGRESS = "emailsvc.json", "emailsvc.progress"
TO_THE_END = "\x1b[K"
"""To a terminal: forget what stands right of here."""


def _as_json(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    ctx.meta[AS_JSON] = wanted or ctx.meta.get(AS_JSON, False)


class Printing(click.Command):
    """Prints by ``show`` and ``tell``, as JSON with ``--json``."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        option = ["--json"]
        self.params.append(click.Option(option, is_flag=True, expose_value=False, callback=_as_json, help="JSON"))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        finally:
            _end_progress()


class Command(Printing):
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


def show(answer: object) -> None:
    """Tables that fit a terminal; JSON with ``--json``, and in a pipe."""
    told = msgspec.to_builtins(answer)
    if _wants_json() or not sys.stdout.isatty():
        _print_json(told)
        return
    _end_progress()
    next_cursor = told.pop("next_cursor", None)
    for line in sheet(told, _columns()):
        click.echo(line)
    if next_cursor is not None:
        click.echo(f"more: --cursor {next_cursor}", err=True)


def tell(answer: object, *sentences: str) -> None:
    """The same in words, in a pipe, too; JSON with ``--json``."""
    if _wants_json():
        _print_json(msgspec.to_builtins(answer))
        return
    _end_progress()
    for sentence in sentences:
        for line in wrapped(sentence, _columns()) if sys.stdout.isatty() else [sentence]:
            click.echo(line)


def _wants_json() -> bool:
    return bool(click.get_current_context().meta.get(AS_JSON))


def _print_json(told: object) -> None:
    click.echo(json.dumps(told, indent=2, ensure_ascii=False))


def _columns() -> int:
    return shutil.get_terminal_size().columns


def progress(done: int, of: int | None = None) -> None:
    """On a terminal, one line that is written over; nothing in a pipe."""
    if sys.stderr.isatty():
        click.get_current_context().meta[IN_PROGRESS] = True
        how_far = f"{done:,} so far" if of is None else f"{done:,} of {of:,}"
        click.echo(f"{how_far}{TO_THE_END}\r", nl=False, err=True)


def _end_progress() -> None:
    if click.get_current_context().meta.pop(IN_PROGRESS, False):
        click.echo(TO_THE_END, nl=False, err=True)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no entry
        return f"user {os.getuid()}"


as_ = click.option("--as", "who", default=_login_name, help="whom the journal names  [default: the login name]")
