"""For load balancers and monitoring."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Response
from msgspec.structs import asdict
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from emailsvc import reports
from emailsvc.context import service
from emailsvc.reports.answers import Stats
from emailsvc.vocabulary import DeliveryState
from emailsvc.web import auth
from emailsvc.web.answers import Health, Ready
from emailsvc.web.contract import Routes
from emailsvc.web.problems import problem
from emailsvc.web.reading import answer

blueprint = Routes("health", __name__)

_COUNTERS = {
    "received": "E-mails accepted",
    "duplicates": "Webhooks answered as duplicates",
    "mismatches": "Webhooks with a known id and other content",
    "absorbed": "E-mails that are duplicates of another id",
    "absorbed_other": "Those of them with other content",
    "would_absorb": "E-mails sent that a window would have absorbed",
    "sent": "E-mails taken by the mail server",
    "failed_attempts": "Attempts that did not end in sent",
}
_GAUGES = {
    "pending": "E-mails waiting to be sent",
    "sending": "E-mails being sent",
    "failed": "E-mails given up",
    "cancelled": "E-mails cancelled",
    "dead_letters": "Unresolved dead letters",
}


@blueprint.declare("GET", "/healthz", "anyone", "The process is up")
def healthz() -> Health:
    return Health("ok")


@blueprint.declare(
    "GET", "/readyz", "anyone", "Mail can go out",
    answers={200: Ready}, codes=("not_ready", "database_unavailable"),
)  # fmt: skip
def readyz() -> Response:
    wrong = reports.readiness(service().engine, service().config)
    if not wrong:
        return answer(Ready("ready"))
    shown = wrong if auth.is_operator() else None
    return problem(503, "not_ready", "The service cannot deliver at the moment.", problems=shown)


@blueprint.declare("GET", "/metrics", "operator", "The totals for Prometheus", answers={200: "text/plain"})
def metrics() -> Response:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(reports.stats(service().engine)))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Collector:
    """`/stats` in Prometheus' terms: the database counts for all processes, so nothing is kept in this one."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    def collect(self) -> Iterator[Metric]:
        values = asdict(self.stats)
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(f"emailsvc_{name}", meaning, value=values[name])
        for name, meaning in _GAUGES.items():
            yield GaugeMetricFamily(f"emailsvc_{name}", meaning, value=values[name])
        refused = CounterMetricFamily("emailsvc_refused", "Webhooks refused", labels=["code"])
        for code, count in self.stats.refused.items():
            refused.add_metric([code], count)
        yield refused
        oldest = self.stats.oldest_pending_seconds or 0
        yield GaugeMetricFamily("emailsvc_oldest_pending_seconds", "Age of the oldest due e-mail", value=oldest)
        state = GaugeMetricFamily("emailsvc_delivery", "1 for the state that delivery is in", labels=["state"])
        for one in DeliveryState:
            state.add_metric([one], float(self.stats.delivery.state == one))
        yield state
