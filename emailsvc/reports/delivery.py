"""Whether mail goes out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, Row, select

from emailsvc.clock import isoformat
from emailsvc.db.models import Switch
from emailsvc.db.snapshots import snapshot
from emailsvc.reports.answers import Delivery, Held, Outage
from emailsvc.vocabulary import DeliveryState


def delivery_state(engine: Engine) -> Delivery:
    with snapshot(engine) as connection:
        return read_delivery(connection)


def read_delivery(connection: Connection) -> Delivery:
    switch = connection.execute(select(Switch)).one()
    paused, outage = _paused(switch), _outage(switch)
    if paused is not None:
        return Delivery(DeliveryState.PAUSED, paused.since, paused.reason, paused, outage)
    if outage is not None:
        return Delivery(DeliveryState.OUTAGE, outage.since, outage.reason, paused, outage)
    return Delivery(DeliveryState.RUNNING, None, None, paused, outage)


def _paused(switch: Row[*tuple[Any, ...]]) -> Held | None:
    return None if switch.paused_at is None else Held(isoformat(switch.paused_at), switch.pause_reason)


def _outage(switch: Row[*tuple[Any, ...]]) -> Outage | None:
    if switch.outage_since is None:
        return None
    return Outage(isoformat(switch.outage_since), switch.outage_reason, isoformat(switch.next_probe_at))
