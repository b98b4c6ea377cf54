"""Refused webhooks are added up, and written now and then."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from sqlalchemy import String
from sqlalchemy.exc import OperationalError

from emailsvc.db.counts import REFUSED, TOTAL_OF
from emailsvc.db.models import Counter
from emailsvc.web import ROUTES, refused
from emailsvc.web.refused import RefusedWebhooks
from tests.servers import wait_for
from tests.unit.conftest import no_threads


def test_however_many_are_written_at_once_and_the_next_are_written_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "FLUSH_SECONDS", 0.3)
    written: list[dict[str, int]] = []
    webhooks = RefusedWebhooks(lambda counts: written.append(dict(counts)))
    for code in ["not_json", "invalid_json"] * 500:
        webhooks.add({code: 1})
    wait_for(lambda: written, 10, "a write")
    webhooks.add({"not_json": 1})
    wait_for(lambda: len(written) == 2, 10, "another write")
    assert written == [{"not_json": 500, "invalid_json": 500}, {"not_json": 1}]


def test_nothing_is_written_when_nothing_was_refused() -> None:
    written: list[Mapping[str, int]] = []
    RefusedWebhooks(written.append).flush()
    assert written == []


def test_what_cannot_be_written_is_written_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "FLUSH_SECONDS", 0.05)
    tries: list[dict[str, int]] = []

    def write(counts: Mapping[str, int]) -> None:
        tries.append(dict(counts))
        if len(tries) == 1:
            raise OperationalError("INSERT", {}, Exception("away"))

    RefusedWebhooks(write).add({"not_json": 2})
    wait_for(lambda: len(tries) == 2, 10, "the second try")
    assert tries == [{"not_json": 2}, {"not_json": 2}]


def test_what_comes_when_no_thread_can_be_started_is_written_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "FLUSH_SECONDS", 0.05)
    written: list[dict[str, int]] = []
    webhooks = RefusedWebhooks(lambda counts: written.append(dict(counts)))
    with no_threads():
        webhooks.add({"not_json": 2})
    webhooks.add({"not_json": 1})
    wait_for(lambda: written, 10, "a write")
    assert written == [{"not_json": 3}]


def test_every_code_of_a_refused_webhook_fits_into_its_counter() -> None:
    routes = [route for route in ROUTES if route.path.startswith("/webhook/")]
    told = {code for route in routes for status, codes in route.codes.items() if status < 500 for code in codes}
    kinds = [f"{TOTAL_OF}{REFUSED}{code}" for code in told - {"payload_mismatch"} | {"bad_request"}]
    kind = Counter.__table__.c.kind.type
    assert isinstance(kind, String)
    assert kind.length is not None
    assert max(map(len, kinds)) <= kind.length
