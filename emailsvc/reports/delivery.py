"""Whether mail goes out."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, select

from emailsvc.clock import isoformat
from emailsvc.db.models import Switch
from emailsvc.db.snapshots import snapshot
from emailsvc.reports.answers import Delivery
from emailsvc.vocabulary import DeliveryState


def delivery_state(engine: Engine) -> Delivery:
    with snapshot(engine) as connection:
        return read_delivery(connection)


def read_delivery(connection: Connection) -> Delivery:
    switch = connection.execute(select(Switch)).one()
    if switch.paused_at is not None:
        return Delivery(DeliveryState.PAUSED, isoformat(switch.paused_at), switch.pause_reason)
    if switch.outage_since is not None:
        return Delivery(DeliveryState.OUTAGE, isoformat(switch.outage_since), switch.outage_reason)
    return Delivery(DeliveryState.RUNNING, None, None)
