"""Read-only queries: what operators and clients see, and the invariant. Each is one consistent snapshot."""

from __future__ import annotations

from emailsvc.db.snapshots import snapshot as snapshot
from emailsvc.reports.delivery import delivery_state as delivery_state
from emailsvc.reports.desk import Overview as Overview
from emailsvc.reports.desk import read_desk as read_desk
from emailsvc.reports.emails import email as email
from emailsvc.reports.emails import lookup as lookup
from emailsvc.reports.groups import letter_groups as letter_groups
from emailsvc.reports.hourly import hours as hours
from emailsvc.reports.invariant import glance as glance
from emailsvc.reports.invariant import violations as violations
from emailsvc.reports.journal import action as action
from emailsvc.reports.journal import actions as actions
from emailsvc.reports.letters import dead_letter as dead_letter
from emailsvc.reports.letters import dead_letters as dead_letters
from emailsvc.reports.monitoring import Metrics as Metrics
from emailsvc.reports.monitoring import metrics as metrics
from emailsvc.reports.pulse import DAY_SECONDS as DAY_SECONDS
from emailsvc.reports.pulse import Vitals as Vitals
from emailsvc.reports.pulse import vitals as vitals
from emailsvc.reports.ready import MIN_FREE_BYTES as MIN_FREE_BYTES
from emailsvc.reports.ready import disk_is_full as disk_is_full
from emailsvc.reports.ready import readiness as readiness
from emailsvc.reports.searching import search as search
from emailsvc.reports.totals import stats as stats
from emailsvc.reports.waiting import MAX_COUNTED as MAX_COUNTED
