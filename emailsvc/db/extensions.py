"""The Flask extensions for the database, and the engine behind them."""

from __future__ import annotations

from typing import Any

from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import make_url
from sqlalchemy.orm import DeclarativeBase

from emailsvc.db.connections import SQLITE_BUSY_SECONDS, PromptPool
from emailsvc.settings.config import Config

POOL_SIZE = 3
"""Connections per process, none beyond. Two web processes and one worker make 9; twice that during a deploy overlap,
and the release phase, stay below the 20 of a small hosted PostgreSQL."""


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base, disable_autonaming=True)
migrate = Migrate()


def engine_options(config: Config) -> dict[str, Any]:
    options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": 10}
    options["poolclass"] = PromptPool
    options["hide_parameters"] = True  # an error that quoted them would carry the mail into the log
    if config.is_sqlite:
        return {**options, "connect_args": {"timeout": SQLITE_BUSY_SECONDS}}
    return {
        **options,
        "isolation_level": "READ COMMITTED",
        "connect_args": {
            **_prepare_threshold(config),
            "connect_timeout": 5,
            # A peer that vanished must not hold a thread for the kernel's default of two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            "client_encoding": "utf8",
            "application_name": "emailsvc",
        },
    }


def _prepare_threshold(config: Config) -> dict[str, int | None]:
    """0 means no prepared statements, as with other drivers; psycopg would take it for «prepare all»."""
    asked = make_url(config.database_url).query.get("prepare_threshold")
    return {} if asked is None else {"prepare_threshold": int(str(asked)) or None}
