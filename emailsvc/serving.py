"""gunicorn's settings: ``gunicorn wsgi:app --config python:emailsvc.serving``. Bound to PORT, or to loopback without.

A client that sends half a request and then nothing would hold a thread for as long as it likes: gthread's ``timeout``
watches the process, not the request. So the kernel is told how long a read may wait; accepted sockets inherit it.
"""

from __future__ import annotations

import logging
import socket
import struct
from typing import Any

READ_SECONDS = 10

worker_class = "gthread"
threads = 16  # more than there are database connections: a thread that reads from a slow client costs little
timeout = 30
graceful_timeout = 25
keepalive = 95  # above the 90 s for which a platform's router keeps its connections
control_socket_disable = True
forwarder_headers = ""  # no header may change the path


def post_fork(_server: Any, worker: Any) -> None:
    for listener in worker.sockets:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", READ_SECONDS, 0))
    logging.getLogger("gunicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """A client that went silent is none; gunicorn would log a traceback for each."""
    return not (record.exc_info and isinstance(record.exc_info[1], BlockingIOError))
