"""A real Postfix takes an e-mail and then bounces it; what it says of that comes back through the chapter's pipe."""

from __future__ import annotations

import re
import shutil
import smtplib
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from flask import Flask
from werkzeug.serving import make_server

from emailsvc import reports
from emailsvc.app import transport_maker
from emailsvc.delivery.drain import Drain
from emailsvc.outbox import SentTogether
from emailsvc.settings.config import Config
from emailsvc.vocabulary import EventName, Report, Status
from tests.emails import accept
from tests.postfix import Postfix, postfix
from tests.servers import free_port, wait_for

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CHAPTER = (Path(__file__).parents[2] / "emailsvc" / "feedback" / "README.md").read_text()
SECRET = "a-secret-of-this-test"
DOMAIN = "mail.example.test"
BOUNCES = f"bounces@{DOMAIN}"
ENVELOPE, HEADERS = "by the envelope's id alone", "by the returned headers alone"


def documented(start: str) -> str:
    """The one line of the chapter that begins so."""
    (line,) = re.findall(rf"^ *({re.escape(start)}.*)$", CHAPTER, re.MULTILINE)
    return str(line)


@contextmanager
def bouncing(folder: Path, port: int, by: str) -> Iterator[Postfix]:
    """Nothing can be delivered to `gone.test`; bounces go to the service at ``port``, as the chapter says."""
    folder.chmod(0o755)  # the command runs as another user
    secret, aliases, without_header = folder / "emailsvc.curl", folder / "aliases", folder / "header_checks"
    without_header.write_text("/^X-Email-Ref:/ IGNORE\n")
    secret.write_text(documented("user = ").replace("SECRET", SECRET))
    line = documented("bounces: ").replace("https://emails.example.com", f"http://127.0.0.1:{port}")
    aliases.write_text(line.replace("/etc/emailsvc.curl", str(secret)) + "\n")
    subprocess.run(["postalias", str(aliases)], check=True, capture_output=True)
    with postfix(
        mydestination=DOMAIN,
        local_recipient_maps="",
        alias_maps=f"$default_database_type:{aliases}",
        transport_maps="inline:{{gone.test = error:5.1.1 no such mailbox here}}",
        smtpd_reject_unlisted_recipient="no",
        smtpd_discard_ehlo_keywords="" if by == ENVELOPE else "dsn",
        header_checks=f"regexp:{without_header}" if by == ENVELOPE else "",
        minimal_backoff_time="1s",
        maximal_backoff_time="1s",
        queue_run_delay="1s",
    ) as server:
        yield server


@contextmanager
def serving(app: Flask, port: int) -> Iterator[None]:
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("by", [ENVELOPE, HEADERS])
def test_a_bounce_comes_back_though_the_service_was_away(
    by: str, make_config: Callable[..., Config], make_app: Callable[[Config], Flask]
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    port = free_port()
    with TemporaryDirectory() as folder, bouncing(Path(folder), port, by) as server:
        config = make_config(
            smtp_url=f"smtp://127.0.0.1:{server.port}", bounce_address=BOUNCES, report_secrets=f"dsn:{SECRET}"
        )
        app = make_app(config)
        engine = app.extensions["emailsvc"].engine
        accept(engine, config, user="ann@gone.test")
        transport = transport_maker(config)()
        Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine)).run()
        transport.close()
        assert reports.email(engine, "m-1").state == Status.SENT
        wait_for(lambda: server.log().count("status=deferred") >= 2, 30, lambda: f"two attempts\n{server.log()}")
        with serving(app, port):
            wait_for(lambda: reports.stats(engine).bounced, 30, lambda: f"the bounce\n{server.log()}")
            _write(server, "Subject: I am away\r\n\r\n" + "Until Monday.\r\n" * 100_000)
            wait_for(lambda: server.log().count("delivered to command") == 2, 30, server.log)
    (told,) = (one for one in reports.email(engine, "m-1").timeline if one.event == EventName.REPORTED)
    assert (told.report, told.kind, told.enhanced, told.text) == (
        Report.BOUNCED,
        "hard",
        "5.1.1",
        "no such mailbox here",
    )
    assert reports.email(engine, "m-1").state == Status.SENT
    assert reports.stats(engine).unmatched_reports == 1


def _write(server: Postfix, mail: str) -> None:
    """Somebody's own mail to the address of bounces, larger than what the pipe reads of it."""
    with smtplib.SMTP("127.0.0.1", server.port) as client:
        client.sendmail("ann@example.test", [BOUNCES], mail)
