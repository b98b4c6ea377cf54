"""The alert rules: valid, about metrics that there are, silent while all is well, and loud when it is not."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from tests.stack import ROOT
from tests.webkit import ON_SQLITE

RULES = ROOT / "emailsvc" / "commands" / "alerts.yml"
ALERTS = re.findall(r"alert: (\w+)", RULES.read_text())

Series = dict[str, str]  # in promtool's notation, one value a minute

WELL: Series = {
    "workers": "2x1500",
    "outage": "0x1500",
    "paused": "0x1500",
    "dead_letters": "0x1500",
    'open_dead_letters{reason="uncertain"}': "0x1500",
    'oldest_due_seconds{priority="high"}': "0x1500",
    'oldest_due_seconds{priority="low"}': "600x1500",
    "last_sweep_timestamp_seconds": "0+60x1500",
    'attempts_total{outcome="sent"}': "0+100x1500",
    'attempts_total{outcome="rejected"}': "0+2x1500",
    'attempts_total{outcome="uncertain"}': "0x1500",
    'refused_total{code="invalid_field"}': "0+1x1500",
    "mismatches_total": "3x1500",
    'conversation_seconds_bucket{le="0.1"}': "0+90x1500",
    'conversation_seconds_bucket{le="10.0"}': "0+100x1500",
    'conversation_seconds_bucket{le="30.0"}': "0+100x1500",
    'conversation_seconds_bucket{le="+Inf"}': "0+100x1500",
}

WRONG: dict[str, Series] = {
    "EmailsvcNotScraped": {"workers": "_x1500"},
    "EmailsvcNoWorker": {"workers": "0x1500"},
    "EmailsvcMailIsLate": {'oldest_due_seconds{priority="high"}': "301x1500"},
    "EmailsvcLowPriorityIsLate": {'oldest_due_seconds{priority="low"}': "14401x1500"},
    "EmailsvcOutage": {"outage": "1x1500"},
    "EmailsvcPaused": {"paused": "1x1500", 'oldest_due_seconds{priority="high"}': "9000x1500"},
    "EmailsvcSweepIsLate": {"last_sweep_timestamp_seconds": "0x1500"},
    "EmailsvcManyRejected": {'attempts_total{outcome="rejected"}': "0+30x1500"},
    "EmailsvcManyUncertain": {'attempts_total{outcome="uncertain"}': "0+1x1500"},
    "EmailsvcUncertain": {'open_dead_letters{reason="uncertain"}': "1x1500"},
    "EmailsvcDeadLetters": {"dead_letters": "1x1500"},
    "EmailsvcConversationsAreSlow": {'conversation_seconds_bucket{le="10.0"}': "0+94x1500"},
    "EmailsvcWebhooksRefused": {'refused_total{code="invalid_field"}': "0+2x1500"},
    "EmailsvcMismatches": {"mismatches_total": "0+1x1500"},
}


def test_promtool_finds_no_fault_with_the_rules(promtool: str) -> None:
    checked = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


@ON_SQLITE
def test_the_rules_ask_for_metrics_that_there_are(client: FlaskClient) -> None:
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    told = {sample.name for family in families for sample in family.samples} | {f"{one.name}_total" for one in families}
    asked = set(re.findall(r"emailsvc_\w+", RULES.read_text())) - {"emailsvc_last_sweep_timestamp_seconds"}
    assert asked <= told
    assert {f"emailsvc_{re.split('{', name)[0]}" for name in WELL} >= asked


def test_every_alarm_leads_to_what_to_do() -> None:
    headings = re.findall(r"^##+ (.*)$", (RULES.parent / "README.md").read_text(), re.MULTILINE)
    runbooks = re.findall(r"runbook: (\S+)", RULES.read_text())
    assert len(runbooks) == len(ALERTS)
    assert set(runbooks) <= {heading.lower().replace(" ", "-") for heading in headings}


def test_each_alarm_is_raised_by_what_it_is_about_and_by_nothing_else(promtool: str, tmp_path: Path) -> None:
    assert list(WRONG) == ALERTS
    tests = [_told(WELL, None), *(_told(WELL | wrong, alert) for alert, wrong in WRONG.items())]
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps(document))  # which is YAML
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _told(series: Series, expected: str | None) -> dict[str, object]:
    """At the end of a day of two web processes, exactly this alarm."""
    fed = [
        {"series": _on(f"emailsvc_{name}", instance), "values": values}
        for name, values in series.items()
        for instance in "ab"
    ]
    expectations = [
        {
            "expr": f'count(ALERTS{{alertstate="firing", alertname="{alert}"}}) or vector(0)',
            "eval_time": "1450m",
            "exp_samples": [{"labels": "{}", "value": int(alert == expected)}],
        }
        for alert in ALERTS
    ]
    return {"name": expected or "all is well", "interval": "1m", "input_series": fed, "promql_expr_test": expectations}


def _on(series: str, instance: str) -> str:
    name, _, labels = series.partition("{")
    return f'{name}{{instance="{instance}"{"," if labels else ""}{labels or "}"}'
