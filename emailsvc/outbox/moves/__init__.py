"""The moves of the state machine: every status that is ever written is written here.

Each is one guarded UPDATE (accepting: an INSERT) in the transaction of its caller, over a set of rows where a set makes
sense, and returns what it matched. Which status may become which is declared as ``BECOMES`` in ``db.models``. A row
that does not match was moved by somebody else first; each move says what that means. A person who was to be forgotten
while the e-mail was in hand is forgotten by the move that ends it.
"""

from emailsvc.outbox.moves.absorbing import drop, revive
from emailsvc.outbox.moves.accepting import Kept, accept
from emailsvc.outbox.moves.ending import Failed, Tried, defer, fail, fail_waiting, send
from emailsvc.outbox.moves.resolving import RESOLVE, Letter, deliver, discard, replay
from emailsvc.outbox.moves.settling import settle
from emailsvc.outbox.moves.taking import claiming, release
from emailsvc.outbox.moves.together import Taken, send_together
from emailsvc.outbox.moves.turning import Held, Moved
from emailsvc.outbox.moves.withdrawing import cancel, erase

__all__ = [
    "RESOLVE",
    "Failed",
    "Held",
    "Kept",
    "Letter",
    "Moved",
    "Taken",
    "Tried",
    "accept",
    "cancel",
    "claiming",
    "defer",
    "deliver",
    "discard",
    "drop",
    "erase",
    "fail",
    "fail_waiting",
    "release",
    "replay",
    "revive",
    "send",
    "send_together",
    "settle",
]
