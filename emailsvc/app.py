"""The application factory: the only module that knows all the others."""

from __future__ import annotations

import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError, OperationalError

from emailsvc import log, outbox, web
from emailsvc.commands import cli
from emailsvc.db import schema
from emailsvc.db.connections import (
    HeldConnections,
    connect_promptly,
    limit_postgresql,
    ping_what_rested,
    prepare_sqlite,
    refused_by_pooler,
)
from emailsvc.db.extensions import db, engine_options, migrate
from emailsvc.errors import ConfigurationError, brief
from emailsvc.mail.files import FileTransport
from emailsvc.mail.smtp import SmtpTransport
from emailsvc.mail.transport import Transport
from emailsvc.settings.config import INSTANCE, Config, from_environment
from emailsvc.wakeups import queue, tasks
from emailsvc.wakeups.locks import LocalLocks, RedisLocks

logger = logging.getLogger("emailsvc")


def create_app(config: Config | None = None) -> Flask:
    """Build the application. Raises ConfigurationError; touches neither database nor network."""
    config = config or from_environment(INSTANCE)
    try:
        config.instance.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"{config.instance} cannot be made: {exc.strerror}.") from exc
    app = Flask("emailsvc", instance_path=str(config.instance), static_folder=None, template_folder="web/templates")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=config.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(config),
        MAX_CONTENT_LENGTH=config.max_request_bytes,
    )
    db.init_app(app)
    migrate.init_app(app, db, directory=str(schema.MIGRATIONS))
    with app.app_context():
        engine = db.engine
    if config.is_sqlite:
        prepare_sqlite(engine)
    else:
        limit_postgresql(engine)
        connect_promptly(engine)
        ping_what_rested(engine)
        app.extensions["held_connections"] = HeldConnections(engine)
    _dispose_after_fork(engine)
    huey = queue.build(config)
    client = queue.redis_client(huey)
    locks = RedisLocks(client) if client is not None else LocalLocks()
    app.extensions["huey"] = huey
    app.extensions["emailsvc"] = tasks.register(huey, config, engine, locks, transport_maker(config))
    web.register(app)
    cli.register(app)
    return app


def transport_maker(config: Config) -> Callable[[], Transport]:
    server = config.smtp_url
    if server is None:
        folder = config.instance / "outbox"
        return lambda: FileTransport(folder, idempotency_header=config.idempotency_header)
    return lambda: SmtpTransport(
        server, idempotency_header=config.idempotency_header, bounce_address=config.bounce_address
    )


def _dispose_after_fork(engine: Engine) -> None:
    # A connection that two processes use gives each the other's rows.
    reference = weakref.ref(engine)

    def dispose() -> None:
        inherited = reference()
        if inherited is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=dispose)


def load(*, wait_for_database: bool = False) -> Flask:
    """For the processes that serve: a database that is away stops neither; the web answers 503, a worker waits here."""
    app = load_for_commands()
    config = app.extensions["emailsvc"].config
    with _one_line_for_the_operator():
        while not _prepared(app) and wait_for_database:
            time.sleep(1)
    for what in config.misspelt:
        logger.warning("unknown_setting", extra={"fields": {"what": what}})
    if config.smtp_url is None:
        fields = {"folder": str(config.instance / "outbox"), "hint": "set SMTP_URL to send for real"}
        logger.warning("smtp_not_configured", extra={"fields": fields})
    return app


def load_for_commands() -> Flask:
    with _one_line_for_the_operator():
        app = create_app()
        log.configure(app.extensions["emailsvc"].config)
        return app


@contextmanager
def _one_line_for_the_operator() -> Iterator[None]:
    try:
        yield
    except ConfigurationError as exc:
        print(f"emailsvc: {exc}", file=sys.stderr)  # noqa: T201 - logging may not be set up
        raise SystemExit(3) from exc  # gunicorn gives up at once on 3, and would restart its worker for ever on others


def _prepared(app: Flask) -> bool:
    service = app.extensions["emailsvc"]
    try:
        schema.ensure(app, service.engine)
        if service.config.delivery_paused:
            outbox.pause(service.engine, "DELIVERY_PAUSED=1")
        return True
    except OperationalError as exc:
        if advice := refused_by_pooler(exc):
            raise ConfigurationError(f"DATABASE_URL: {advice}.") from exc
        logger.error("database_away", extra={"fields": {"error": brief(exc), "hint": "check DATABASE_URL"}})
        return False
    except DatabaseError as exc:
        raise ConfigurationError(f"DATABASE_URL: the database cannot be used: {brief(exc)}") from exc
