"""What a process says before it works: one line that names what is wrong, and a status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import ROOT

LOAD = "from pathlib import Path; from emailsvc import app; app.INSTANCE = Path('instance').resolve(); app.load()"


def test_a_process_that_serves_names_a_misspelt_setting_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LOAD,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SMPT_URL": "smtp://h"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    named = [line for line in done.stderr.splitlines() if "SMPT_URL" in line]
    assert len(named) == 1
    assert "did you mean SMTP_URL?" in named[0]


@pytest.mark.parametrize("arguments", [["wsgi.py"], ["-m", "emailsvc"]])
def test_python_itself_says_what_to_run(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-S", *arguments], cwd=ROOT, capture_output=True, text=True
    )  # no package seen
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert ".venv/bin/flask start" in done.stderr


def test_a_process_with_a_bad_value_ends_with_one_line_and_status_3() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from emailsvc.app import load; load()"],
        cwd=ROOT,
        env={**os.environ, "SMTP_URL": "smtp://u:hidden@h:port", "DATABASE_URL": "sqlite:////nowhere/emails.db"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("emailsvc: SMTP_URL=(not shown): expected a URL like ")
    assert len(done.stderr.splitlines()) == 1
