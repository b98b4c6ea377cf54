"""Whether mail goes out."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Engine, select

from emailsvc.clock import isoformat
from emailsvc.db.models import Switch
from emailsvc.db.snapshots import snapshot
from emailsvc.reports.answers import Delivery, Held
from emailsvc.vocabulary import DeliveryState


def delivery_state(engine: Engine) -> Delivery:
    with snapshot(engine) as connection:
        return read_delivery(connection)


def read_delivery(connection: Connection) -> Delivery:
    switch = connection.execute(select(Switch)).one()
    paused, outage = _held(switch.paused_at, switch.pause_reason), _held(switch.outage_since, switch.outage_reason)
    if paused is not None:
        return Delivery(DeliveryState.PAUSED, paused.since, paused.reason, paused, outage)
    if outage is not None:
        return Delivery(DeliveryState.OUTAGE, outage.since, outage.reason, paused, outage)
    return Delivery(DeliveryState.RUNNING, None, None, paused, outage)


def _held(since: datetime | None, reason: str | None) -> Held | None:
    return None if since is None else Held(isoformat(since), reason)
