"""Here nothing is served and nothing is started: a unit test that needs more belongs to another tier."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest


def _refused(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a test in tests/unit starts no server and no process: move it to tests/integration")


@pytest.fixture(autouse=True)
def _no_server_and_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "listen", _refused)
    monkeypatch.setattr(socket.socket, "connect", _refused)
    monkeypatch.setattr(subprocess.Popen, "__init__", _refused)


@contextmanager
def no_threads() -> Iterator[None]:
    """None can be started here: there is no memory for their stacks."""
    usual = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(usual)
