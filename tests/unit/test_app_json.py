"""`app.json`: what a button that deploys the service sets up is enough for it, and nothing else."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from emailsvc.errors import ConfigurationError
from emailsvc.settings.config import SETTINGS, load
from tests.stack import ROOT

APP: dict[str, Any] = json.loads((ROOT / "app.json").read_text())
OF_ADDONS = {
    "heroku-postgresql": ("DATABASE_URL", "postgres://user:password@host.example:5432/name"),
    "rediscloud": ("REDIS_URL", "redis://default:password@host.example:6379"),
}
ASKED_FOR = {"SMTP_URL": "smtps://user:password@smtp.example.com:465", "MAIL_FROM": "no-reply@example.com"}


def environ() -> dict[str, str]:
    """As the platform makes it: addresses from the add-ons, 64 hexadecimal digits for a generated secret."""
    found = {"DYNO": "web.1"}
    for addon in APP["addons"]:
        name, url = OF_ADDONS[addon["plan"].partition(":")[0]]
        assert addon.get("as", "DATABASE") == name.removesuffix("_URL")
        found[name] = url
    for name, declared in APP["env"].items():
        generated = secrets.token_hex(32) if declared.get("generator") == "secret" else None
        found[name] = declared.get("value") or generated or ASKED_FOR[name]
    return found


def test_what_it_sets_up_is_enough_to_start_on_a_dyno(tmp_path: Path) -> None:
    config = load(environ(), tmp_path)
    assert not config.is_sqlite
    assert config.redis_url
    assert config.smtp_url
    assert len(config.api_tokens) == len(config.webhook_secrets) == 1, "nobody else may send, or look"
    assert config.misspelt == ()


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "SMTP_URL"])
def test_nothing_of_it_may_be_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        load({key: value for key, value in environ().items() if key != name}, tmp_path)


def test_it_asks_for_what_nobody_can_guess_and_sets_only_what_is_a_setting() -> None:
    assert {name for name, declared in APP["env"].items() if declared.get("required")} == ASKED_FOR.keys()
    assert APP["env"].keys() <= {setting.name for setting in SETTINGS}
    assert all(declared["description"] for declared in APP["env"].values())


def test_it_starts_the_processes_of_the_procfile() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    names = {line.partition(":")[0] for line in lines if line.strip()}
    assert APP["formation"].keys() == names - {"release"}, "the platform runs the release phase by itself"
    assert {size["quantity"] for size in APP["formation"].values()} == {1}
