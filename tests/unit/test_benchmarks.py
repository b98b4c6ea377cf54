"""The arithmetic behind the tables of the benchmarks."""

from __future__ import annotations

import pytest

from tests.benchmarks import side_by_side
from tests.benchmarks.capacity import Plan
from tests.benchmarks.side_by_side import Side, alternate, insist_on_quiet, ratios


def test_of_rates_the_lower_quartile_is_shown_and_of_times_the_upper() -> None:
    ours, theirs = [50.0, 100.0, 120.0, 150.0, 200.0], [100.0] * 5
    assert ratios(ours, theirs) == "1.20 × · 1.00 · 0.50–2.00"
    assert ratios(ours, theirs, is_time=True) == "1.20 × · 1.50 · 0.50–2.00"


def test_each_round_begins_with_the_other_side() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        return Side(name, lambda: order.append(name) or {"n": 1.0})

    measured = alternate([side("ours"), side("theirs")], 3, 1)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert [len(runs) for runs in measured.values()] == [3, 3]


def test_no_round_begins_when_the_time_is_over() -> None:
    assert len(alternate([Side("ours", lambda: {"n": 1.0})], 5, 0)["ours"]) == 1


def test_a_busy_machine_is_refused_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "busy_share", lambda: 0.2)
    with pytest.raises(SystemExit, match="20% of its cores"):
        insist_on_quiet(anyway=False)
    insist_on_quiet(anyway=True)


@pytest.mark.parametrize("rate", [10.0, 300.0])
def test_what_fits_on_a_disk_fills_it(rate: float) -> None:
    days = Plan(rate, 400, 7).days_within(500)
    assert Plan(rate, days, 7).disk_gb == pytest.approx(500)
