"""gunicorn's settings: how many connections a process may have."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from emailsvc import serving


@pytest.fixture
def few_files() -> Iterator[int]:
    """A limit of 300 open files for this process, where more is allowed to who asks: the latter number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    yield 10**6 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_asks_for_as_many_open_files_as_its_connections_need(few_files: int) -> None:
    assert serving._connections() == min(serving.CONNECTIONS, few_files - serving.SPARE_DESCRIPTORS)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == min(serving.CONNECTIONS + serving.SPARE_DESCRIPTORS, few_files)
