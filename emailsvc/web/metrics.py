"""What Prometheus scrapes. The database counts for all processes, so nothing is kept in this one."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import TypeVar

from flask import Response
from msgspec.structs import asdict
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from emailsvc import __version__, reports
from emailsvc.context import service
from emailsvc.db import schema
from emailsvc.db.details import CONVERSATION, DELIVERY, Histogram
from emailsvc.reports import Metrics
from emailsvc.vocabulary import DeliveryState, Outcome
from emailsvc.web.contract import Routes

blueprint = Routes("metrics", __name__)

L = TypeVar("L", bound=str)

_COUNTERS = {
    "received": "E-mails accepted",
    "duplicates": "Webhooks answered as duplicates",
    "mismatches": "Webhooks with a known id and other content",
    "absorbed": "E-mails that are duplicates of another id",
    "absorbed_other": "Those of them with other content",
    "would_absorb": "E-mails sent that a window would have absorbed",
    "sent": "E-mails taken by the mail server, or marked as delivered",
    "failed_attempts": "Attempts that did not end in sent",
    "delivered": "E-mails reported as delivered",
    "bounced": "E-mails reported as bounced",
    "complained": "E-mails complained of",
    "settled": "E-mails that became sent by a report",
    "unmatched_reports": "Reports of no e-mail here",
}
_GAUGES = {
    "pending": "E-mails waiting to be sent",
    "sending": "E-mails being sent",
    "failed": "E-mails given up",
    "cancelled": "E-mails cancelled",
    "dead_letters": "Unresolved dead letters",
}


@blueprint.declare("GET", "/metrics", "operator", "The numbers for Prometheus", answers={200: "text/plain"})
def scraped() -> Response:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(reports.metrics(service().engine)))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Collector:
    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._totals()
        yield from self._labelled()
        yield from self._state()
        yield self._histogram(DELIVERY, "delivery_seconds", "From acceptance, or a later send_at, until sent")
        yield self._histogram(CONVERSATION, "conversation_seconds", "Conversations with the mail server that sent")

    def _totals(self) -> Iterator[Metric]:
        values = asdict(self.metrics.stats)
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(f"emailsvc_{name}", meaning, value=values[name])
        for name, meaning in _GAUGES.items():
            yield _gauge(name, meaning, values[name])
        yield _gauge("oldest_pending_seconds", "Age of the oldest due e-mail", values["oldest_pending_seconds"] or 0)

    def _labelled(self) -> Iterator[Metric]:
        metrics = self.metrics
        taken = CONVERSATION.cumulated(metrics.tally)[-1]
        yield _counters("refused", "Webhooks refused", "code", metrics.stats.refused)
        attempts = {Outcome.SENT: taken, **metrics.attempts}
        yield _counters("attempts", "Conversations about an e-mail", "outcome", attempts)
        yield _counters("dead_lettered", "E-mails given up, whatever became of them", "reason", metrics.given_up)
        yield _gauges("open_dead_letters", "Unresolved dead letters", "reason", metrics.open_letters)
        yield _gauges("waiting", "E-mails waiting to be sent", "priority", metrics.pending)
        yield _gauges("oldest_due_seconds", "Age of the oldest due e-mail", "priority", metrics.seconds_due)
        yield _gauge("retries_waiting", "E-mails that wait for the time of their next attempt", metrics.retries)

    def _state(self) -> Iterator[Metric]:
        delivery = self.metrics.stats.delivery
        states = {state: int(delivery.state == state) for state in DeliveryState}
        yield _gauges("delivery", "1 for the state that delivery is in", "state", states)
        yield _gauge("paused", "1 while an operator has paused delivery", delivery.paused is not None)
        yield _gauge("outage", "1 while the mail server is away", delivery.outage is not None)
        yield _gauge("workers", "Worker processes alive", self.metrics.workers)
        if self.metrics.swept_at is not None:
            swept_at = self.metrics.swept_at.timestamp()
            yield _gauge("last_sweep_timestamp_seconds", "When a sweep last came to its end", swept_at)
        built = GaugeMetricFamily("emailsvc_build_info", "What runs here", labels=("version", "schema", "python"))
        built.add_metric((__version__, schema.newest(), platform.python_version()), 1)
        yield built

    def _histogram(self, of: Histogram, name: str, meaning: str) -> Metric:
        family = HistogramMetricFamily(f"emailsvc_{name}", meaning)
        bounds = (*(str(float(bound)) for bound in of.bounds), "+Inf")
        tally = self.metrics.tally
        family.add_metric((), list(zip(bounds, of.cumulated(tally), strict=True)), of.seconds(tally))
        return family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"emailsvc_{name}", meaning, value=value)


def _gauges(name: str, meaning: str, label: str, values: Mapping[L, float]) -> Metric:
    return _each(GaugeMetricFamily(f"emailsvc_{name}", meaning, labels=(label,)), values)


def _counters(name: str, meaning: str, label: str, values: Mapping[L, float]) -> Metric:
    return _each(CounterMetricFamily(f"emailsvc_{name}", meaning, labels=(label,)), values)


def _each(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[L, float]) -> Metric:
    for value, number in values.items():
        family.add_metric((value,), number)
    return family
