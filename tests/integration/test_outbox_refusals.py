"""Refusals that add up to an outage, those that never do, and how one begins and ends."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from emailsvc import outbox, reports
from emailsvc.db.models import Attempt
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import refusals
from emailsvc.settings.config import Config
from tests.emails import (
    OUTAGE,
    SENT,
    SUSPENDED,
    accept,
    claim,
    make_due,
    move_switch,
    record,
    replay_many,
    rows,
    switch,
)
from tests.factories import new_email


def refused(text: str, command: str | None = "RCPT") -> Result:
    code, _, rest = text.partition(" ")
    enhanced = rest.partition(" ")[0]
    return Result(Outcome.REJECTED, text, int(code), enhanced if enhanced.count(".") == 2 else None, command)


FULL = refused("552 5.2.2 mailbox full")
UNEXPLAINED = refused("550 Unrouteable address")  # Exim


def outcomes(engine: Engine, config: Config, *results: Result, domains: int = 3, prefix: str = "m") -> list[str | None]:
    """What became of so many new e-mails, one result for each; after an outage no more is claimed."""
    users = [f"u{number}@domain{number % domains}.example" for number in range(len(results))]
    new = [new_email(f"{prefix}-{number:03}", user=user) for number, user in enumerate(users)]
    outbox.accept_many(engine, new, config)
    return again(engine, config, *results)


def again(engine: Engine, config: Config, *results: Result) -> list[str | None]:
    reasons: list[str | None] = []
    while len(reasons) < len(results):
        made = outbox.claim(engine, f"{len(reasons):032}", config)
        if not isinstance(made, outbox.Claim):
            break
        for number in range(len(made.rows)):
            recorded = record(engine, config, made, results[len(reasons)], number)
            reasons.append(recorded.reason or recorded.released)
            if not recorded.go_on:
                return reasons
    return reasons


@pytest.mark.parametrize(
    "refusal",
    [
        refused("550 5.7.1 account suspended", "."),
        refused("550 5.7.1 account suspended", "RCPT"),
        refused("554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException", "."),
        refused("550 5.1.7 bad sender address", "RCPT"),
        refused("550 5.1.8 bad sender domain", "MAIL"),
        refused("550 5.2.1 this account is disabled", "MAIL"),
        refused("550 no", "MAIL"),
        refused("554 no", "DATA"),
        refused("554 no", "."),
    ],
    ids=lambda refusal: f"{refusal.command} {refusal.reply}",
)
def test_twenty_refusals_in_a_row_over_three_domains_are_an_outage(
    engine: Engine, config: Config, refusal: Result
) -> None:
    """The twentieth is not buried: it goes back, and so do those after it."""
    assert outcomes(engine, config, *[refusal] * 25) == ["rejected"] * 19 + ["outage"]
    assert switch(engine).outage_reason == refusal.reply
    stats = reports.stats(engine)
    assert (stats.dead_letters, stats.pending, stats.sending) == (19, 6, 0)
    move_switch(engine, 6, "next_probe_at")
    assert record(engine, config, claim(engine, config), refusal).released == "outage"
    assert reports.stats(engine).dead_letters == 19


@pytest.mark.parametrize("enhanced", ["5.1.1", "5.1.2", "5.1.3", "5.1.4", "5.1.6", "5.1.10", "5.2.1", "5.2.2"])
def test_refusals_that_concern_the_recipient_never_count(engine: Engine, config: Config, enhanced: str) -> None:
    refusal = refused(f"550 {enhanced} no", "RCPT" if enhanced != "5.2.2" else ".")
    assert set(outcomes(engine, config, *[refusal] * 70)) == {"rejected"}
    assert outcomes(engine, config, SUSPENDED, prefix="n") == ["rejected"], "one refusal makes no run of them"


def test_mailbox_full_in_between_hides_no_suspended_account(engine: Engine, config: Config) -> None:
    assert outcomes(engine, config, *[FULL, SUSPENDED] * 20, domains=5) == ["rejected"] * 39 + ["outage"]


def test_refusals_of_a_recipient_without_an_enhanced_code_count_from_sixty(engine: Engine, config: Config) -> None:
    assert outcomes(engine, config, *[UNEXPLAINED] * 65) == ["rejected"] * 59 + ["outage"]


def test_refusals_of_a_recipient_without_an_enhanced_code_help_others_only_from_sixty(
    engine: Engine, config: Config
) -> None:
    assert outcomes(engine, config, *[UNEXPLAINED] * 50, *[SUSPENDED] * 15) == ["rejected"] * 59 + ["outage"]


def test_what_an_older_release_recorded_has_no_command_and_counts_like_a_recipient(
    engine: Engine, config: Config
) -> None:
    old = Result(Outcome.REJECTED, "RCPT: 550 Unrouteable address", 550)
    assert set(outcomes(engine, config, *[old] * 30)) == {"rejected"}


def test_mail_that_was_refused_before_counts_no_second_time(engine: Engine, config: Config) -> None:
    assert set(outcomes(engine, config, *[SUSPENDED] * 15)) == {"rejected"}
    assert replay_many(engine) == 15
    make_due(engine)
    assert again(engine, config, *[SUSPENDED] * 15) == ["rejected"] * 15
    assert outcomes(engine, config, *[SUSPENDED] * 5, prefix="new") == ["rejected"] * 4 + ["outage"]


def test_a_replay_of_300_full_mailboxes_stops_nobody(engine: Engine, config: Config) -> None:
    assert set(outcomes(engine, config, *[FULL] * 300)) == {"rejected"}
    assert replay_many(engine) == 300
    make_due(engine)
    assert set(again(engine, config, *[FULL] * 300)) == {"rejected"}
    assert outcomes(engine, config, SENT, prefix="fresh") == [None]
    assert reports.stats(engine).dead_letters == 300


def test_refusals_of_one_domain_are_its_own_matter(engine: Engine, config: Config) -> None:
    assert set(outcomes(engine, config, *[SUSPENDED] * 30, domains=2)) == {"rejected"}


def test_one_success_in_between_ends_a_run_of_refusals(engine: Engine, config: Config) -> None:
    results = [SENT if number == 10 else SUSPENDED for number in range(30)]
    assert "outage" not in outcomes(engine, config, *results)


def test_mail_that_cannot_be_built_is_not_held_against_the_server(engine: Engine, config: Config) -> None:
    unbuildable = Result(Outcome.REJECTED, "cannot be built")
    assert set(outcomes(engine, config, *[unbuildable] * 25, domains=5)) == {"rejected"}


def test_no_more_than_the_newest_refusals_are_read(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a look while others wait; a suspended account refuses everything, so they are enough."""
    monkeypatch.setattr(refusals, "MAX_READ", 30)
    assert set(outcomes(engine, config, *[SUSPENDED] * 10, *[FULL] * 25)) == {"rejected"}
    assert outcomes(engine, config, *[SUSPENDED] * 25, prefix="n") == ["rejected"] * 19 + ["outage"]


def test_the_command_that_was_refused_is_kept(engine: Engine, config: Config) -> None:
    outcomes(engine, config, UNEXPLAINED)
    assert [attempt.command for attempt in rows(engine, Attempt)] == ["RCPT"]


# By hand


def test_an_outage_that_is_ended_by_hand_is_not_reopened_by_the_next_refusal(engine: Engine, config: Config) -> None:
    assert outcomes(engine, config, *[SUSPENDED] * 20)[-1] == "outage"
    move_switch(engine, 90, "outage_since")
    lasted = outbox.end_outage(engine)
    assert lasted is not None
    assert 90 <= lasted < 120
    assert outbox.may_start(engine)
    results = [SUSPENDED] * 20
    make_due(engine)
    assert again(engine, config, SUSPENDED) == ["rejected"]
    assert outcomes(engine, config, *results, prefix="n") == ["rejected"] * 18 + ["outage"], (
        "and then a run begins anew"
    )


def test_ending_an_outage_that_is_none_changes_nothing(engine: Engine) -> None:
    assert outbox.end_outage(engine) is None
    assert outbox.may_start(engine)


def test_ending_an_outage_leaves_a_pause_alone(engine: Engine, config: Config) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    outbox.pause(engine, "an operator")
    assert outbox.end_outage(engine) is not None
    assert not outbox.may_start(engine)
    outbox.resume(engine)
    assert outbox.may_start(engine)


# What is told


def test_a_record_tells_how_many_wait_when_an_outage_begins_and_how_long_it_was(engine: Engine, config: Config) -> None:
    accept(engine, config, *(f"m-{number}" for number in range(12)))
    assert record(engine, config, claim(engine, config), OUTAGE).waiting == 12
    move_switch(engine, 60, "next_probe_at", "outage_since")
    assert record(engine, config, claim(engine, config), OUTAGE).waiting is None, "it goes on"
    move_switch(engine, 60, "next_probe_at", "outage_since")
    ended = record(engine, config, claim(engine, config), SENT)
    assert ended.waiting is None
    assert ended.outage_seconds is not None
    assert 120 <= ended.outage_seconds < 150
