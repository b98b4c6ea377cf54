"""gunicorn's settings: ``gunicorn wsgi:app --config python:emailsvc.serving``. Bound to PORT, else to loopback."""

from __future__ import annotations

import resource

CONNECTIONS = 4000
SPARE_DESCRIPTORS = 100  # for the database, Redis, logs and listeners


def _connections() -> int:
    """As many as there may be open files, which are often limited to 1,024 where more is allowed to who asks."""
    wanted = CONNECTIONS + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted - SPARE_DESCRIPTORS


worker_class = "emailsvc.serving.worker.Worker"
logger_class = "emailsvc.serving.logger.Logger"
threads = 16  # more than there are database connections, for what needs none
worker_connections = _connections()
timeout = 30
graceful_timeout = 25
keepalive = 95  # above the 90 s for which a platform's router keeps its connections
control_socket_disable = True
forwarder_headers = ""  # no header may change the path
