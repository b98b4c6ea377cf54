"""The state machine, and the sole writer of the database.

Every move is one guarded ``UPDATE … WHERE status = … [AND claim = …]``; no row matched means that somebody else got
there first, and each caller says what it does then. Every function is one transaction on the engine it is given, and
nothing is sent while one is open.
"""

from emailsvc.outbox.accept import Accepted, accept, accept_many
from emailsvc.outbox.claim import (
    CARRIED_BYTES,
    Claim,
    Claimed,
    Idle,
    attachments,
    claim,
    content,
    recover,
    release,
    renew,
)
from emailsvc.outbox.deadletters import Resolved, delivered, discard, replay, replay_many
from emailsvc.outbox.doubt import InDoubt
from emailsvc.outbox.look import look
from emailsvc.outbox.record import Recorded, expire, record
from emailsvc.outbox.sweep import Swept, retain, sweep
from emailsvc.outbox.switch import FRESH_SECONDS, end_outage, may_start, pause, resume
from emailsvc.outbox.withdraw import cancel, erase
from emailsvc.outbox.workers import forget_worker, heartbeat, try_commit

__all__ = [
    "CARRIED_BYTES",
    "FRESH_SECONDS",
    "Accepted",
    "Claim",
    "Claimed",
    "Idle",
    "InDoubt",
    "Recorded",
    "Resolved",
    "Swept",
    "accept",
    "accept_many",
    "attachments",
    "cancel",
    "claim",
    "content",
    "delivered",
    "discard",
    "end_outage",
    "erase",
    "expire",
    "forget_worker",
    "heartbeat",
    "look",
    "may_start",
    "pause",
    "record",
    "recover",
    "release",
    "renew",
    "replay",
    "replay_many",
    "resume",
    "retain",
    "sweep",
    "try_commit",
]
