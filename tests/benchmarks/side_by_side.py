"""Two sides measured in turn on a quiet machine, and the table that comes of it."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

QUIET_SECONDS = 5.0
MAX_BUSY = 0.1
"""Of all cores. The load average would not do: the benchmark before this one raised it itself."""

Measured = Mapping[str, float]
"""What one run of one side showed, by name. A name that ends in "ms" or " s" is better when it is less."""


@dataclass(frozen=True)
class Side:
    name: str
    run: Callable[[], Measured]


def options(doc: str | None, rounds: int, minutes: float = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"alternating rounds (default {rounds})")
    later = f"after which no further round begins (default {minutes:g})"
    parser.add_argument("--minutes", type=float, default=minutes, help=later)
    parser.add_argument("--anyway", action="store_true", help="run although the machine is busy")
    return parser


def _busy_ticks() -> tuple[int, int]:
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)  # idle, iowait


def busy_share(seconds: float = QUIET_SECONDS) -> float:
    """The share of all cores that anything took in the coming seconds."""
    busy, total = _busy_ticks()
    time.sleep(seconds)
    busy_then, total_then = _busy_ticks()
    return (busy_then - busy) / max(1, total_then - total)


def insist_on_quiet(anyway: bool) -> None:
    share = busy_share()
    if share > MAX_BUSY and not anyway:
        sys.exit(
            f"This machine is busy with something else: {share:.0%} of its cores over {QUIET_SECONDS:g} s, and at most"
            f" {MAX_BUSY:.0%} may be. Wait until it is quiet, or take --anyway and do not trust the figures."
        )
    print(f"{os.cpu_count()} cores, {share:.1%} busy before", flush=True)


def alternate(sides: Sequence[Side], rounds: int, minutes: float) -> dict[str, list[Measured]]:
    """Each side once a round, in turn the one first and the other, so that none always has the cold start."""
    measured: dict[str, list[Measured]] = {side.name: [] for side in sides}
    end = time.monotonic() + 60 * minutes
    for number in range(rounds):
        if number and time.monotonic() > end:
            break
        for side in reversed(sides) if number % 2 else sides:
            measured[side.name].append(side.run())
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return measured


def _is_time(name: str) -> bool:
    return name.endswith((" ms", " s"))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(values: Sequence[float]) -> str:
    low, middle, high = quartiles(values)
    return f"{_figure(middle)} ({_figure(low)}–{_figure(high)})"


def ratios(ours: Sequence[float], theirs: Sequence[float], *, is_time: bool = False) -> str:
    """Median, the quartile on the worse side (the lower one; of times the upper one), least and most of the pairs."""
    each = [our / their for our, their in zip(ours, theirs, strict=True)]
    low, middle, high = quartiles(each)
    return f"{middle:.2f} × · {high if is_time else low:.2f} · {min(each):.2f}–{max(each):.2f}"


def compare(measured: Mapping[str, Sequence[Measured]], ours: str, beside: str) -> None:
    """One line for each name that both sides have measured, with the ratios of the pairs."""
    rows = [("", "median (quartiles)", "median (quartiles)", "ratio: median · worse quartile · range")]
    for name in measured[ours][0]:
        if name in measured[beside][0]:
            mine, theirs = ([run[name] for run in measured[side]] for side in (ours, beside))
            rows.append((name, _spread(mine), _spread(theirs), ratios(mine, theirs, is_time=_is_time(name))))
    print(f"\n{ours}  beside  {beside}, {len(measured[ours])} pairs in turn")
    print_table(rows)


def within(measured: Sequence[Measured], name: str, against: str) -> None:
    """One figure of a side against another of the same side and round."""
    ours, theirs = ([run[each] for run in measured] for each in (name, against))
    print_table([(f"{name} against {against}", _spread(ours), _spread(theirs), ratios(ours, theirs))])


def summarise(measured: Mapping[str, Sequence[Measured]], title: str) -> None:
    """What each side has measured, beside nothing."""
    rounds = [len(runs) for runs in measured.values()]
    print(f"\n{title}, {rounds[0]} rounds in turn: median (quartiles)")
    print_table([(name, _spread([run[name] for run in runs])) for runs in measured.values() for name in runs[0]])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)
