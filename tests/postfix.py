"""A real Postfix in a folder of its own, on a loopback port."""

from __future__ import annotations

import email
import email.policy
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.servers import free_port

SERVICES = """
{port}    inet n - n - - smtpd
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 1 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
proxymap  unix - - n - - proxymap
error     unix - - n - - error
retry     unix - - n - - error
virtual   unix - n n - - virtual
local     unix - n n - - local
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
smtpd_peername_lookup = no
"""


class Postfix:
    """Takes mail for `example.test` into one mailbox. ``settings``: of its main.cf, beside or instead of these."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port, self._folder = free_port(), folder
        self._configuration = folder / "etc"
        owner = pwd.getpwnam("postfix")
        for name in ("etc", "queue", "data", "mail"):
            (folder / name).mkdir()
        for name in ("data", "mail"):
            os.chown(folder / name, owner.pw_uid, owner.pw_gid)
        folder.chmod(0o755)  # its processes run as another user
        given = dict(line.split(" =") for line in SETTINGS.format(folder=folder, owner=owner).strip().splitlines())
        lines = [f"{name} ={value}\n" for name, value in (given | settings).items()]
        (self._configuration / "main.cf").write_text("".join(lines))
        (self._configuration / "master.cf").write_text(SERVICES.format(port=self.port))

    def __enter__(self) -> Postfix:
        self._run("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("abort")

    def _run(self, command: str) -> None:
        line = ["postfix", "-c", str(self._configuration), command]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr + self.log()

    def log(self) -> str:
        log = self._folder / "postfix.log"
        return log.read_text() if log.exists() else ""

    def mails(self) -> list[EmailMessage]:
        found = sorted((self._folder / "mail" / "box" / "new").glob("*"))
        return [email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in found]


@contextmanager
def postfix(**settings: str) -> Iterator[Postfix]:
    if shutil.which("postfix") is None or os.geteuid() != 0:
        pytest.skip("needs Postfix (apt-get install postfix) and root, whose rights it starts with")
    with tempfile.TemporaryDirectory() as folder, Postfix(Path(folder), **settings) as server:
        yield server
