"""Claiming: one batch, one priority, one token, one lease; and the switch that every claim reads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text, update

from emailsvc import outbox
from emailsvc.clock import utcnow
from emailsvc.db.models import Email, Switch
from emailsvc.db.sqltime import db_in
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import Claim, Content, Idle, claims
from emailsvc.settings.config import Config
from tests.emails import (
    DEFERRED,
    OUTAGE,
    REJECTED,
    SENT,
    accept,
    claim,
    make_due,
    move,
    move_switch,
    record,
    replay_many,
    row,
    switch,
    token,
)  # fmt: skip
from tests.factories import new_email


def test_a_claim_takes_a_batch_in_id_order_under_one_token(engine: Engine, make_config: Any) -> None:
    config = make_config(batch_size=3)
    accept(engine, config, "a", "b", "c", "d")
    made = claim(engine, config)
    assert [r.email_id for r in made.rows] == ["a", "b", "c"]
    assert made.full
    assert {row(engine, i).claim for i in "abc"} == {made.token}
    assert row(engine, "d").status == "pending"
    lease = row(engine, "a").lease_expires_at - made.now
    assert abs(lease.total_seconds() - config.lease_seconds) < 1


def test_a_claim_carries_small_content_and_leaves_large_content_to_be_read_one_by_one(
    engine: Engine, config: Config
) -> None:
    headers = {"X-Kind": "letter"}
    accept(engine, config, "small", html="<p>Hi</p>", headers=headers)
    accept(engine, config, "large", html="<p>" + "x" * 1_000_000, headers=headers)
    small, large = claim(engine, config).rows
    assert small.content == Content("Hello", "Text", "<p>Hi</p>", {"headers": headers})
    assert large.content is None
    read = outbox.content(engine, large.id)
    assert (read.subject, read.body, len(read.html), read.other) == ("Hello", "Text", 1_000_003, {"headers": headers})


def test_two_claims_never_share_a_row(engine: Engine, make_config: Any) -> None:
    config = make_config(batch_size=5)
    for number in range(200):
        accept(engine, config, f"m-{number}")
    start = threading.Barrier(8)

    def take(_: int) -> list[int]:
        start.wait()
        taken: list[int] = []
        while isinstance(made := outbox.claim(engine, token(), config), Claim):
            taken += [r.id for r in made.rows]
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [row_id for ids in pool.map(take, range(8)) for row_id in ids]
    assert len(taken) == len(set(taken)) == 200


def test_what_is_not_due_is_not_claimed(engine: Engine, config: Config) -> None:
    accept(engine, config, "later", send_at=(utcnow() + timedelta(hours=1)).isoformat())
    accept(engine, config, "sooner", send_at=(utcnow() + timedelta(minutes=1)).isoformat(), priority="low")
    assert outbox.claim(engine, token(), config) == Idle("empty")
    assert 55 < (outbox.look(engine) or 0) <= 60, "what is due first, of any priority"


def test_high_overtakes_and_a_claim_holds_one_priority(engine: Engine, config: Config) -> None:
    for priority in ("low", "normal", "high"):
        for number in range(3):
            accept(engine, config, f"{priority}-{number}", priority=priority)
    order = [{r.email_id.split("-")[0] for r in claim(engine, config).rows} for _ in range(3)]
    assert order == [{"high"}, {"normal"}, {"low"}]


def test_a_claim_that_starts_from_the_lowest_lets_low_move(engine: Engine, config: Config) -> None:
    accept(engine, config, "high", priority="high")
    accept(engine, config, "low", priority="low")
    assert [r.email_id for r in claim(engine, config, low_first=True).rows] == ["low"]


def test_a_claim_carries_no_attachments(engine: Engine, config: Config) -> None:
    accept(engine, config, attachments=[{"filename": "x", "content_type": "text/plain", "content": "aGk="}])
    made = claim(engine, config)
    assert made.rows[0].attachment_count == 1
    assert [a.content for a in outbox.attachments(engine, made.rows[0].id)] == [b"hi"]


def test_a_claim_whose_reply_was_lost_is_released_by_its_token(engine: Engine, config: Config) -> None:
    accept(engine, config)
    lost = token()
    outbox.claim(engine, lost, config)
    due = row(engine).next_attempt_at
    assert outbox.release(engine, lost, config) == 1
    assert outbox.release(engine, lost, config) == 0
    assert (row(engine).status, row(engine).attempts, row(engine).next_attempt_at) == ("pending", 0, due)


def test_release_of_some_rows_keeps_the_others(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    made = claim(engine, config)
    outbox.release(engine, made.token, config, [made.rows[1].id])
    assert (row(engine, "a").status, row(engine, "b").status) == ("sending", "pending")


def test_a_lease_is_renewed_only_by_its_owner_and_only_in_time(engine: Engine, config: Config) -> None:
    accept(engine, config)
    made = claim(engine, config)
    row_id = made.rows[0].id
    assert outbox.renew(engine, made.token, row_id, 500)
    assert row(engine).lease_expires_at > utcnow() + timedelta(seconds=400)
    assert not outbox.renew(engine, "somebody else", row_id, 500)
    move(engine, 10_000, "lease_expires_at")
    assert not outbox.renew(engine, made.token, row_id, 500)


def test_a_pause_holds_every_claim_and_a_resume_ends_it(engine: Engine, config: Config) -> None:
    accept(engine, config)
    outbox.pause(engine, "maintenance")
    since = switch(engine).paused_at
    outbox.pause(engine, "again")
    assert (switch(engine).paused_at, switch(engine).pause_reason) == (since, "maintenance")
    assert not outbox.may_start(engine)
    assert outbox.claim(engine, token(), config) == Idle("paused")
    outbox.resume(engine)
    assert outbox.may_start(engine)
    assert claim(engine, config).rows


def test_an_outage_gives_the_batch_back_and_burns_no_attempt(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    due = row(engine, "b").next_attempt_at
    made = claim(engine, config)
    recorded = record(engine, config, made, OUTAGE)
    assert (recorded.won, recorded.go_on, recorded.released) == (True, False, "outage")
    for name in "ab":
        assert (row(engine, name).status, row(engine, name).attempts) == ("pending", 0)
    assert row(engine, "b").next_attempt_at == due
    assert switch(engine).outage_reason == "connection refused"
    assert not outbox.may_start(engine)


def test_an_outage_gives_out_one_probe_per_cool_down_in_the_whole_cluster(engine: Engine, config: Config) -> None:
    accept(engine, config, *(f"m-{n}" for n in range(20)))
    record(engine, config, claim(engine, config), OUTAGE)
    assert outbox.claim(engine, token(), config) == Idle("outage")
    assert 0 < (outbox.look(engine) or 0) <= 5
    move_switch(engine, 6, "next_probe_at")
    with ThreadPoolExecutor(4) as pool:
        made = [c for c in pool.map(lambda _: outbox.claim(engine, token(), config), range(4)) if isinstance(c, Claim)]
    assert [(len(c.rows), c.probe) for c in made] == [(1, True)]


def _failed_once(engine: Engine, config: Config, count: int) -> None:
    """Dead letters, refused."""
    accept(engine, config, *(f"bad-{number:03}" for number in range(count)))
    while isinstance(made := outbox.claim(engine, token(), config), Claim):
        for number in range(len(made.rows)):
            record(engine, config, made, REJECTED, number)


def _probe(engine: Engine, config: Config) -> str:
    """The e-mail that the next probe takes; then it is given back."""
    move_switch(engine, 60, "next_probe_at")
    made = claim(engine, config)
    assert made.probe
    outbox.release(engine, made.token, config)
    return str(made.rows[0].email_id)


def test_a_probe_prefers_mail_that_was_never_refused(engine: Engine, config: Config) -> None:
    _failed_once(engine, config, 300)
    assert replay_many(engine) == 300
    record(engine, config, claim(engine, config), OUTAGE)
    accept(engine, config, "fresh", priority="low")
    assert [_probe(engine, config) for _ in range(5)] == ["fresh"] * 5


def test_a_probe_prefers_deferred_mail_to_what_was_replayed(engine: Engine, config: Config) -> None:
    _failed_once(engine, config, 30)
    accept(engine, config, "deferred")
    record(engine, config, claim(engine, config), DEFERRED)
    assert replay_many(engine) == 30
    make_due(engine)
    record(engine, config, claim(engine, config), OUTAGE)
    assert [_probe(engine, config) for _ in range(5)] == ["deferred"] * 5


def test_a_probe_looks_at_the_newest_rows_too(engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many bad ones lie in front."""
    monkeypatch.setattr(claims, "PROBE_CHOICE", 20)
    _failed_once(engine, config, 100)
    assert replay_many(engine) == 100
    record(engine, config, claim(engine, config), OUTAGE)
    accept(engine, config, "fresh")
    assert [_probe(engine, config) for _ in range(3)] == ["fresh"] * 3


def test_a_list_of_bad_addresses_in_front_does_not_hide_the_good_ones_from_a_probe(
    engine: Engine, config: Config
) -> None:
    """Among those that nothing tells apart it takes one by lot."""
    accept(engine, config, *(f"bad-{n}" for n in range(150)), "good")
    record(engine, config, claim(engine, config), OUTAGE)

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def _last_has_the_lot(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> tuple[str, Any]:
        return statement.replace("random()", "-emails.id"), parameters

    assert _probe(engine, config) == "good"


def test_the_cool_down_grows_to_thirty_seconds(engine: Engine, config: Config) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    waits = []
    for _ in range(5):
        move_switch(engine, 100, "next_probe_at")
        record(engine, config, claim(engine, config), OUTAGE)
        assert outbox.claim(engine, token(), config) == Idle("outage")
        waits.append(round(outbox.look(engine) or 0))
    assert waits == [10, 20, 30, 30, 30]
    assert row(engine).attempts == 0


@pytest.mark.parametrize("result", [SENT, DEFERRED, REJECTED], ids=lambda r: r.outcome.value)
def test_any_other_outcome_of_the_probe_ends_the_outage(engine: Engine, config: Config, result: Any) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    move_switch(engine, 6, "next_probe_at")
    recorded = record(engine, config, claim(engine, config), result)
    assert (recorded.won, recorded.go_on) == (True, True)
    assert switch(engine).outage_since is None


def test_a_probe_that_our_own_shutdown_cut_says_nothing_about_the_server(engine: Engine, config: Config) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    move_switch(engine, 6, "next_probe_at")
    record(engine, config, claim(engine, config), Result(Outcome.CUT, "shutting down"))
    assert switch(engine).outage_since is not None
    assert row(engine).status == "pending"


def test_a_probe_that_succeeds_never_ends_a_pause(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    record(engine, config, claim(engine, config), OUTAGE)
    move_switch(engine, 6, "next_probe_at")
    probe = claim(engine, config)
    outbox.pause(engine, "an operator")
    assert not record(engine, config, probe, SENT).go_on
    assert switch(engine).paused_at is not None
    assert outbox.claim(engine, token(), config) == Idle("paused")


def test_a_pause_takes_no_probes(engine: Engine, config: Config) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    move_switch(engine, 6, "next_probe_at")
    outbox.pause(engine, "an operator")
    assert outbox.claim(engine, token(), config) == Idle("paused")


def test_a_rate_limit_gives_out_slots_a_second_ahead_at_most(engine: Engine, make_config: Any) -> None:
    config = make_config(rate_limit_per_second=10, batch_size=6)
    accept(engine, config, *(f"m-{n}" for n in range(20)))
    first, second = claim(engine, config), claim(engine, config)
    assert (len(first.rows), len(second.rows)) == (6, 4)
    starts = [first.now + timedelta(seconds=s) for s in first.start_at]
    starts += [second.now + timedelta(seconds=s) for s in second.start_at]
    gaps = [(b - a).total_seconds() for a, b in pairwise(starts)]
    assert all(abs(gap - 0.1) < 0.03 for gap in gaps), gaps
    idle = outbox.claim(engine, token(), config)
    assert isinstance(idle, Idle)
    assert idle.reason == "rate"
    assert 0 < (idle.wait or 0) <= 1.1


def test_less_than_one_a_second_is_a_limit_too(engine: Engine, make_config: Any) -> None:
    config = make_config(rate_limit_per_second=0.1)
    accept(engine, config, "a", "b")
    assert len(claim(engine, config).rows) == 1
    idle = outbox.claim(engine, token(), config)
    assert isinstance(idle, Idle)
    assert 9 < (idle.wait or 0) <= 10
    move_switch(engine, 11, "next_slot_at")
    assert len(claim(engine, config).rows) == 1


@pytest.mark.parametrize(("rate", "longest"), [(10, 1.1), (0.1, 10)])
def test_slots_booked_by_a_wrong_clock_hold_nothing_up(
    engine: Engine, make_config: Any, rate: float, longest: float
) -> None:
    """An hour ahead: after a failover, or when the database's clock was set right."""
    config = make_config(rate_limit_per_second=rate)
    accept(engine, config, "a", "b")
    with engine.begin() as connection:
        connection.execute(update(Switch).values(next_slot_at=db_in(3600)))
    idle = outbox.claim(engine, token(), config)
    assert isinstance(idle, Idle)
    assert 0 < (idle.wait or 0) <= longest
    move_switch(engine, longest, "next_slot_at")
    assert claim(engine, config).rows


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_locked_row_is_passed_over_and_not_waited_for(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    with engine.begin() as other:
        other.execute(select(Email.id).where(Email.email_id == "a").with_for_update()).all()
        assert [r.email_id for r in claim(engine, config).rows] == ["b"]
        assert outbox.claim(engine, token(), config) == Idle("empty")
        assert (outbox.look(engine) or 1) <= 0, "somebody comes again"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_claim_uses_its_partial_index_in_a_large_table(engine: Engine, config: Config) -> None:
    """With the status as a literal; psycopg prepares after five uses, and a generic plan must not lose the index."""
    with engine.begin() as connection:
        connection.execute(
            text("""INSERT INTO emails (email_id, fingerprint, recipient, body, size, message_id, status, priority,
                    on_uncertain, received_at, sent_at) SELECT 'old-' || n, 'f', 'a@b.c', 'x', 1, '<a>', 'sent', 1,
                    'hold', now(), now() FROM generate_series(1, 20000) n""")
        )
        connection.execute(text("ANALYZE emails"))
        connection.execute(text("LOAD 'auto_explain'"))
    for number in range(12):
        accept(engine, config, f"m-{number}")
    with engine.connect() as connection:
        scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'ix_emails_due'"
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        before = connection.execute(text(scans)).scalar_one()
    for _ in range(12):
        made = outbox.claim(engine, token(), config)
        if isinstance(made, Claim):
            outbox.release(engine, made.token, config)
    engine.dispose()  # closing a session reports its statistics
    with engine.connect() as connection:
        after = connection.execute(text(scans)).scalar_one()
    assert after - before >= 12


def test_a_sleeping_table_of_scheduled_mail_gives_out_only_what_is_due(engine: Engine, config: Config) -> None:
    later = (utcnow() + timedelta(days=1)).isoformat()
    outbox.accept_many(engine, [new_email(f"later-{n}", priority="high", send_at=later) for n in range(50)], config)
    accept(engine, config, "now")
    assert [r.email_id for r in claim(engine, config).rows] == ["now"]
    make_due(engine)
    assert len(claim(engine, config).rows) == config.batch_size
