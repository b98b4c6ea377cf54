"""The one object in which commands and views find the parts of the service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import current_app
from sqlalchemy import Engine

from emailsvc.settings.config import Config

if TYPE_CHECKING:
    from emailsvc.outbox import Reception


@dataclass(frozen=True)
class Service:
    """``wake`` asks for a drain; it never raises, and never blocks for 2 s."""

    config: Config
    engine: Engine
    wake: Callable[[], None]
    reception: Reception


def service() -> Service:
    return cast(Service, current_app.extensions["emailsvc"])
