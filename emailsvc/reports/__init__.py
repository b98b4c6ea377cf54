"""Read-only queries: what operators and clients see, and the invariant. Each is one consistent snapshot."""

from __future__ import annotations

from emailsvc.reports.delivery import delivery_state
from emailsvc.reports.emails import email, lookup
from emailsvc.reports.invariant import violations
from emailsvc.reports.letters import dead_letter, dead_letters
from emailsvc.reports.ready import MIN_FREE_BYTES, disk_is_full, readiness
from emailsvc.reports.snapshots import snapshot
from emailsvc.reports.totals import stats

__all__ = [
    "MIN_FREE_BYTES",
    "dead_letter",
    "dead_letters",
    "delivery_state",
    "disk_is_full",
    "email",
    "lookup",
    "readiness",
    "snapshot",
    "stats",
    "violations",
]
