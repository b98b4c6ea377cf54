"""The running server against its own published contract, by public tools. They are installed for CI, not for a deploy.

In the suite a few requests are drawn for each operation, always the same. The long version tries every boundary of the
schemas, too, which takes minutes::

    OPENAPI_EXAMPLES=400 pytest tests/acceptance/test_openapi_fuzz.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emailsvc.intake.payload import Rules
from emailsvc.web import ROUTES
from emailsvc.web.openapi import document
from tests.stack import TOKEN, Stack

LONG = int(os.environ.get("OPENAPI_EXAMPLES", "0"))
HOOKS = "tests.schemathesis_hooks"
ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_valid_to_a_public_validator() -> None:
    validator: Any = pytest.importorskip("openapi_spec_validator")
    validator.validate(document(Rules(frozenset({"example.com"}), "X-Idempotency-Key"), ROUTES))


def test_no_generated_request_gets_an_answer_that_is_not_published(make_stack: Callable[..., Stack]) -> None:
    command = shutil.which("schemathesis", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        pytest.skip("schemathesis is not installed here; .ci/requirements.txt has it")
    stack = make_stack(ON_MISMATCH="accept")
    stack.start(workers=1, release=False)
    phases = "coverage,fuzzing" if LONG else "fuzzing"
    options = ["--checks=all", "--no-color", "--seed=1", f"--phases=examples,{phases}", f"--max-examples={LONG or 12}"]
    done = subprocess.run(
        [
            command,
            "run",
            f"http://127.0.0.1:{stack.port}/openapi.json",
            f"--header=Authorization: Bearer {TOKEN}",
            *options,
        ],
        cwd=stack.folder.parent,
        env={**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
