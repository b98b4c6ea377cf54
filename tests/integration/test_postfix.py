"""A real Postfix with a mailbox behind it: what was posted is what arrives."""

from __future__ import annotations

import base64
import email
import email.policy
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from emailsvc import reports
from emailsvc.delivery.drain import Drain
from emailsvc.mail.smtp import SmtpTransport
from emailsvc.outbox import SentTogether
from emailsvc.settings.config import Config
from emailsvc.settings.parsers import SmtpServer
from tests.emails import accept
from tests.servers import free_port, wait_for

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SERVICES = """
{port}    inet n - n - - smtpd
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
proxymap  unix - - n - - proxymap
error     unix - - n - - error
retry     unix - - n - - error
virtual   unix - n n - - virtual
anvil     unix - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""

SETTINGS = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
inet_interfaces = 127.0.0.1
mynetworks = 127.0.0.0/8
mydestination =
myhostname = mail.example.test
virtual_mailbox_domains = example.test
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:box/
virtual_minimum_uid = 1
virtual_uid_maps = static:{owner.pw_uid}
virtual_gid_maps = static:{owner.pw_gid}
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
smtpd_discard_ehlo_keywords = {without}
smtpd_peername_lookup = no
"""


class Postfix:
    def __init__(self, folder: Path, without: str) -> None:
        self.port, self._folder = free_port(), folder
        self._configuration = folder / "etc"
        owner = pwd.getpwnam("postfix")
        for name in ("etc", "queue", "data", "mail"):
            (folder / name).mkdir()
        for name in ("data", "mail"):
            os.chown(folder / name, owner.pw_uid, owner.pw_gid)
        folder.chmod(0o755)  # its processes run as another user
        (self._configuration / "main.cf").write_text(SETTINGS.format(folder=folder, owner=owner, without=without))
        (self._configuration / "master.cf").write_text(SERVICES.format(port=self.port))

    def __enter__(self) -> Postfix:
        self._run("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("abort")

    def _run(self, command: str) -> None:
        line = ["postfix", "-c", str(self._configuration), command]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr + self._log()

    def _log(self) -> str:
        log = self._folder / "postfix.log"
        return log.read_text() if log.exists() else ""

    def mails(self) -> list[EmailMessage]:
        found = sorted((self._folder / "mail" / "box" / "new").glob("*"))
        return [email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in found]


@pytest.fixture(params=["", "pipelining, 8bitmime"], ids=["pipelining", "no pipelining"])
def postfix(request: pytest.FixtureRequest) -> Iterator[Postfix]:
    if shutil.which("postfix") is None or os.geteuid() != 0:
        pytest.skip("needs Postfix (apt-get install postfix) and root, whose rights it starts with")
    with tempfile.TemporaryDirectory() as folder, Postfix(Path(folder), request.param) as server:
        yield server


LONG = "".join(f"{n} " for n in range(3000))
CONTENTS: dict[str, dict[str, Any]] = {
    "plain": {"body": "Hello.\n.\n..\n.leading dot\nFrom here\n\nBye.\n"},
    "eight-bit": {"subject": "Grüße, 東京 🚀", "body": "Grüße\n東京\n🚀\n", "html": "<p>Grüße 東京 🚀</p>\n"},
    "long-lines": {"body": LONG + "\n", "html": f"<p>{LONG}</p>\n", "subject": "Wort " * 190},
    "header": {"body": "x\n", "headers": {"List-Unsubscribe": f"<https://example.com/{'u' * 700}>"}},
    "attached": {
        "body": "See below.\n",
        "html": "<p>See below.</p>\n",
        "attachments": [
            {"filename": "Rechnung März.pdf", "content_type": "application/pdf", "content": bytes(range(256)) * 400},
            {"filename": "a.csv", "content_type": "text/csv; charset=utf-8", "content": "ä;b\r\n.\r\n".encode()},
        ],
    },
}


def _text(part: Any) -> str:
    return str(part.get_content()).replace("\r\n", "\n")


def _posted(fields: dict[str, Any]) -> dict[str, Any]:
    attachments = [
        {**a, "content": base64.b64encode(a["content"]).decode()} for a in fields.get("attachments", [])
    ]  # fmt: skip
    return {**fields, "attachments": attachments}


def test_everything_arrives_as_it_was_posted(engine: Engine, config: Config, postfix: Postfix) -> None:
    for name, fields in CONTENTS.items():
        accept(engine, config, name, **{"user": "box@example.test", "subject": name, **_posted(fields)})
    transport = SmtpTransport(SmtpServer("127.0.0.1", postfix.port, "none"))
    Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine)).run()
    transport.close()
    assert reports.stats(engine).sent == len(CONTENTS), reports.dead_letters(engine)
    wait_for(lambda: len(postfix.mails()) == len(CONTENTS), 30, lambda: f"the mailbox to fill\n{postfix._log()}")
    arrived = {mail["Message-ID"]: mail for mail in postfix.mails()}
    for name, fields in CONTENTS.items():
        _compare(arrived[reports.email(engine, name).message_id], name, fields)


def _compare(mail: EmailMessage, name: str, fields: dict[str, Any]) -> None:
    assert mail["To"] == "box@example.test"
    assert mail["Subject"].strip() == fields.get("subject", name).strip()
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert _text(plain) == fields["body"]
    assert (html is not None) == ("html" in fields)
    if html is not None:
        assert _text(html) == fields["html"]
    for header, value in fields.get("headers", {}).items():
        assert mail[header] == value
    got = [(part.get_filename(), part.get_payload(decode=True)) for part in mail.iter_attachments()]
    assert got == [(a["filename"], a["content"]) for a in fields.get("attachments", [])]
