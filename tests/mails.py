"""What the tests of the transports share: a mail, a throw-away certificate, and one call that sends."""

from __future__ import annotations

import itertools
import shutil
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from emailsvc.clock import monotonic
from emailsvc.mail import Message, Result
from emailsvc.mail.transport import Transport
from emailsvc.settings.parsers import SmtpServer
from tests.smtpd import Smtpd

_numbers = itertools.count(1)


def a_mail(**changes: Any) -> Message:
    """A mail with an id and a Message-ID of its own."""
    number = next(_numbers)
    given: dict[str, Any] = {
        "email_id": f"order-{number}",
        "message_id": f"<{number:032x}@example.com>",
        "from_address": "shop@example.com",
        "recipient": "ada@example.com",
        "subject": "Your order",
        "body": "Thank you.\n",
        "date": datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC),
    }
    return Message(**(given | changes))


def send(
    transport: Transport,
    mail: Message | None = None,
    *,
    timeout: float = 10.0,
    reply_timeout: float = 10.0,
    passing_dot: Callable[[], None] = lambda: None,
) -> Result:
    """``timeout`` seconds from now is the deadline."""
    deadline = monotonic() + timeout
    return transport.send(mail or a_mail(), deadline=deadline, reply_timeout=reply_timeout, passing_dot=passing_dot)


def at(server: Smtpd, tls: str = "none", **changes: Any) -> SmtpServer:
    given: dict[str, Any] = {"host": server.host, "port": server.port, "tls": tls}
    return SmtpServer(**(given | changes))


class Certificate:
    """Self-signed, for one host name; ``trusted`` is a client's context that believes it and still checks the name."""

    def __init__(self, folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("the openssl program makes the certificates of these tests")
        self.file, self.key = certificate, key = folder / "certificate.pem", folder / "key.pem"
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={names}"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(certificate, key)
        self.trusted = ssl.create_default_context(cafile=str(certificate))
