"""The state machine, and the sole writer of the database.

Its moves are made by ``moves``, and there alone. Every function here is one transaction on the engine it is given, and
nothing is sent while one is open.
"""

from emailsvc.outbox.accepting import Accepted, Reception, Verdict, accept, accept_many
from emailsvc.outbox.bulk import Preview, advance, preview, resolve_many, start, stop
from emailsvc.outbox.cancelling import cancel
from emailsvc.outbox.claims import Claim, Claimed, Idle, IdleReason, claim, recover, release, renew
from emailsvc.outbox.contents import CARRIED_BYTES, Content, attachments, content
from emailsvc.outbox.counters import count_refused
from emailsvc.outbox.deadletters import Resolved, delivered, discard, replay
from emailsvc.outbox.doubt import InDoubt
from emailsvc.outbox.erasure import erase
from emailsvc.outbox.expediting import Expedited, send_many_now, send_now
from emailsvc.outbox.looking import look
from emailsvc.outbox.recording import Recorded, Released, expire, record, settle_in_hand
from emailsvc.outbox.reporting import Heard, hear
from emailsvc.outbox.rolling import roll_up
from emailsvc.outbox.settling import log_settled
from emailsvc.outbox.sharing import SentTogether
from emailsvc.outbox.sweeping import Swept, retain, sweep
from emailsvc.outbox.switch import FRESH_SECONDS, end_outage, may_start, pause, resume
from emailsvc.outbox.viewing import Viewed, view
from emailsvc.outbox.windows import First
from emailsvc.outbox.workers import forget_worker, heartbeat, try_commit

__all__ = [
    "CARRIED_BYTES",
    "FRESH_SECONDS",
    "Accepted",
    "Claim",
    "Claimed",
    "Content",
    "Expedited",
    "First",
    "Heard",
    "Idle",
    "IdleReason",
    "InDoubt",
    "Preview",
    "Reception",
    "Recorded",
    "Released",
    "Resolved",
    "SentTogether",
    "Swept",
    "Verdict",
    "Viewed",
    "accept",
    "accept_many",
    "advance",
    "attachments",
    "cancel",
    "claim",
    "content",
    "count_refused",
    "delivered",
    "discard",
    "end_outage",
    "erase",
    "expire",
    "forget_worker",
    "hear",
    "heartbeat",
    "log_settled",
    "look",
    "may_start",
    "pause",
    "preview",
    "record",
    "recover",
    "release",
    "renew",
    "replay",
    "resolve_many",
    "resume",
    "retain",
    "roll_up",
    "send_many_now",
    "send_now",
    "settle_in_hand",
    "start",
    "stop",
    "sweep",
    "try_commit",
    "view",
]
