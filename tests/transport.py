"""What the tests of the transports share: one call that sends, and a throw-away certificate."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emailsvc.clock import monotonic
from emailsvc.mail import Message, Result
from emailsvc.mail.transport import Transport
from emailsvc.settings.parsers import SmtpServer
from tests.factories import a_message
from tests.smtpd import Smtpd


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
    return transport.send(mail or a_message(), deadline=deadline, reply_timeout=reply_timeout, passing_dot=passing_dot)


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
