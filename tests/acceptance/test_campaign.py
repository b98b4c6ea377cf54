"""The long campaign of tests/benchmarks/campaign.py, bounded."""

from __future__ import annotations

from tests.benchmarks.campaign import Plan, run
from tests.conftest import started


def test_it_loses_and_doubles_nothing_while_web_and_workers_are_killed_at_random() -> None:
    plan = Plan(database="postgresql", on_uncertain="hold", term=False, kills=12, emails=480, seed=20)
    tally = started(lambda: run(plan, consumers=2))
    assert tally.failures(plan) == []
    assert tally.kills == 12
    assert tally.emails == 480
    assert tally.uncertain > 0, "the kills hit nothing"


def test_whatever_the_server_took_becomes_sent_when_it_reports_it() -> None:
    plan = Plan(database="sqlite", on_uncertain="hold", term=False, kills=3, emails=100, seed=21, reports=True)
    tally = started(lambda: run(plan, consumers=2))
    assert tally.failures(plan) == []
    assert (tally.kills, tally.emails) == (3, 100)
    assert tally.settled > 0, "the kills hit nothing"
    assert tally.sent == tally.emails - tally.false_alarms
