"""The READMEs say what is true: their commands run as they stand, and their lists are those of the code."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from msgspec.structs import fields
from redis.exceptions import RedisError
from werkzeug.serving import make_server

from emailsvc import outbox, serving
from emailsvc.commands import cli, start
from emailsvc.db import extensions, schema
from emailsvc.delivery.drain import Drain
from emailsvc.intake.addresses import FORBIDDEN_HEADERS, FORBIDDEN_PREFIXES
from emailsvc.intake.payload import EmailPayload
from emailsvc.log import EVENTS
from emailsvc.mail import Message, Outcome, Result
from emailsvc.mail.memory import MemoryTransport
from emailsvc.settings.config import Config, load
from emailsvc.vocabulary import Reason, State
from emailsvc.wakeups import queue
from emailsvc.web import ROUTES
from emailsvc.web.answers import CURSOR
from tests import documents
from tests.conftest import started
from tests.documents import READMES
from tests.emails import DEFERRED, accept, claim, record
from tests.factories import payload
from tests.servers import Redis
from tests.smtpd import Smtpd
from tests.transport import Certificate

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
HTTP = (ROOT / "emailsvc" / "web" / "README.md").read_text()
MAIL = (ROOT / "emailsvc" / "mail" / "README.md").read_text()
OPERATING = (ROOT / "emailsvc" / "commands" / "README.md").read_text()
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYob7oD8="  # its key begins with bytes that no shell variable holds
TOKEN = "a-token-of-this-test"


DESCRIBED = [route for route in ROUTES if not route.path.startswith("/reports/")]
"""Those of providers are described where it is told how they are connected."""


@dataclass(frozen=True)
class Example:
    command: str
    status: int | None
    kind: str | None
    answer: str | None


def examples(document: str) -> list[Example]:
    """Each ```sh block from «Sending» to «Authentication», with the answer that follows it if there is one."""
    part = document[document.index("\n## Sending\n") : document.index("\n## Authentication\n")]
    pattern = r"```sh\n(.*?)```\n(?:\nAnswer `(\d{3})`[^`]*?(?:`[^`\n]+`[^`]*?)*?\n\n```(json|text)\n(.*?)```\n)?"
    return [
        Example(command, int(status) if status else None, kind, answer)
        for command, status, kind, answer in (match.groups() for match in re.finditer(pattern, part, re.DOTALL))
    ]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```\n", HTTP, re.DOTALL)
    return str(found)


class Site:
    """A running service of this process, and a worker that works when it is told to."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self.config: Config = app.extensions["emailsvc"].config
        self.engine = app.extensions["emailsvc"].engine
        transport = MemoryTransport(always=self._judge)
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        self._drain = Drain(
            self.engine, self.config, transport, threading.Event(), nothing, outbox.SentTogether(self.engine)
        )
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"

    @staticmethod
    def _judge(mail: Message) -> Result:
        if mail.recipient.startswith("nobody"):
            return Result(Outcome.REJECTED, "RCPT: 550 5.1.1 no such user", 550, "5.1.1")
        if mail.recipient.startswith("doubt"):
            return Result(Outcome.UNCERTAIN, "no reply to the final dot: the deadline passed")
        return Result(Outcome.SENT, "250 2.0.0 taken", 250)

    def work(self) -> None:
        self._drain.run()

    def run(self, command: list[str], text: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Curl tells the status in a last line; nothing of this user's own configuration is read."""
        (folder / ".curlrc").write_text('silent\nwrite-out = "\\n%{http_code}"\n' if command == ["bash"] else "")
        environ = {
            "PATH": os.environ["PATH"],
            "CURL_HOME": str(folder),
            "HOME": str(folder),
            "no_proxy": "*",
            "URL": self.url,
            "TOKEN": TOKEN,
            "SECRET": SECRET,
        }
        return subprocess.run(command, input=text, env=environ, capture_output=True, text=True, timeout=30)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")


@pytest.fixture
def site(make_app: Callable[[Config], Flask], tmp_path: Path) -> Iterator[Site]:
    app = make_app(
        load(
            {
                "API_TOKENS": TOKEN,
                "WEBHOOK_SECRETS": SECRET,
                "REPORT_SECRETS": f"mine:{SECRET}",
                "RETRY_DELAY_SECONDS": "3600",
            },
            tmp_path / "instance",
        )
    )
    schema.ensure(app, app.extensions["emailsvc"].engine)
    running = Site(app)
    yield running
    running.close()


# The examples


def same_shape(shown: Any, real: Any, where: str = "answer") -> None:
    """The same members and kinds of values, and the same words where they do not depend on the moment."""
    if isinstance(shown, dict) and isinstance(real, dict):
        assert list(shown) == list(real), where
        for name in shown:
            same_shape(shown[name], real[name], f"{where}.{name}")
    elif isinstance(shown, list) and isinstance(real, list):
        assert len(shown) == len(real), where
        for index, (one, other) in enumerate(zip(shown, real, strict=True)):
            same_shape(one, other, f"{where}[{index}]")
    elif where.endswith(("_at", ".at", ".hour", ".since", ".message_id", "oldest_pending_seconds")):
        assert (shown is None) == (real is None), where
    elif where.endswith(".next_cursor") and shown is not None:
        assert re.fullmatch(CURSOR, shown), where
        assert re.fullmatch(CURSOR, real), where
        assert shown.partition("~")[2] == real.partition("~")[2], where
    elif isinstance(shown, str) or shown is None or isinstance(real, bool):
        assert shown == real, where
    else:
        assert type(shown) is type(real), where


def test_every_example_of_a_route_answers_as_shown(site: Site, tmp_path: Path) -> None:
    needs("bash", "curl")
    for number in range(1, 10):
        user = "nobody@example.com" if number in (7, 9) else "doubt@example.com"
        accept(site.engine, site.config, f"order-090{number}", user=user)
        site.work()
    accept(site.engine, site.config, "order-1005")
    record(site.engine, site.config, claim(site.engine, site.config), DEFERRED)
    accept(site.engine, site.config, "order-1003", send_at="2090-01-01T00:00:00Z")
    outbox.heartbeat(site.engine, "a worker")
    found = examples(HTTP)
    assert len(found) >= len(DESCRIBED)
    assert [example.command for example in found if example.answer is None] == ['curl "$URL/openapi.json"\n']
    for example in found:
        show(example, site, tmp_path)


def test_the_examples_of_the_first_page_answer_as_shown(site: Site, tmp_path: Path) -> None:
    needs("bash", "curl")
    (first,) = examples(README)
    assert first.status == 202
    show(first, site, tmp_path)
    (again,) = re.findall(r"same again is answered `200`.*?```json\n(.*?)```", README, re.DOTALL)
    show(replace(first, status=200, answer=again), site, tmp_path)


def show(example: Example, site: Site, folder: Path) -> None:
    done = site.run(["bash"], example.command, folder)
    assert done.returncode == 0, f"{example.command}\n{done.stderr}"
    answer, _, status = done.stdout.rpartition("\n")
    assert int(status) == (example.status or 200), f"{example.command}\n{answer}"
    if example.kind == "json":
        same_shape(json.loads(example.answer or ""), json.loads(answer), example.command)
    elif example.kind == "text":
        assert set((example.answer or "").splitlines()) <= set(answer.splitlines())
    site.work()


def test_every_route_is_described_and_has_an_example() -> None:
    commands = [example.command for example in examples(HTTP)]
    for route in DESCRIBED:
        assert f"### `{route.method} {documents.shown(route.path)}`\n" in HTTP
        pattern = re.escape("$URL") + re.sub(r"\\{\w+\\}", r"[\\w.-]+", re.escape(route.path)) + r"[\"?]"
        assert any(re.search(pattern, command) for command in commands), route.path


def signed(site: Site, command: list[str], text: str, folder: Path) -> list[str]:
    """What is printed when the snippet is run twice."""
    printed = []
    for _ in range(2):
        done = site.run(command, text, folder)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return printed


def test_the_python_snippet_signs(site: Site, tmp_path: Path) -> None:
    first, second = signed(site, [sys.executable, "-"], block("python"), tmp_path)
    assert first.startswith('202 {"status":"accepted","email_id":"order-2001"')
    assert second.startswith('200 {"status":"duplicate","email_id":"order-2001"')


def test_the_javascript_snippet_signs(site: Site, tmp_path: Path) -> None:
    needs("node")
    first, second = signed(site, ["node", "-"], block("js"), tmp_path)
    assert first.startswith('202 {"status":"accepted","email_id":"order-2002"')
    assert second.startswith('200 {"status":"duplicate","email_id":"order-2002"')


def test_the_curl_and_openssl_snippet_signs(site: Site, tmp_path: Path) -> None:
    needs("bash", "curl", "openssl", "od")
    first, second = signed(site, ["bash", "-eu", "-o", "pipefail"], block("bash"), tmp_path)
    assert first.startswith('{"status":"accepted","email_id":"order-2003"')
    assert first.endswith(" 202\n")
    assert second.endswith(" 200\n")


def test_a_snippet_with_another_secret_is_refused(site: Site, tmp_path: Path) -> None:
    code = block("python").replace('os.environ["SECRET"]', '"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"')
    assert "401" in site.run([sys.executable, "-"], code, tmp_path).stderr


def test_the_first_curl_is_the_one_that_flask_start_prints(tmp_path: Path) -> None:
    greeting = start._greeting(load({}, tmp_path), "127.0.0.1", start.DEFAULT_PORT)
    (line,) = re.findall(r"^curl .*hello-1.*$", README, re.MULTILINE)
    assert line.split(" -d ")[1] in greeting
    assert line.split(" -d ")[0].split()[-1] in greeting


# The lists


def table(document: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, as cells."""
    part = document[document.index(f"\n{heading}\n") :]
    rows = re.findall(r"^\|.*\|$", part[: part.index("\n\n", part.index("\n|"))], re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_two_commands_stand_at_the_top() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/"
    top = "\n".join(README.splitlines()[:30])
    assert f"```sh\n{install}flask start\n```" in top
    assert f"```sh\n{install}pytest tests/\n```" in top


def test_nothing_is_promised_that_nobody_can_keep() -> None:
    for path in READMES:
        assert not re.search(r"exactly[- ]once", path.read_text(), re.IGNORECASE), path


def test_the_problem_codes_are_those_of_the_contract_with_their_statuses() -> None:
    listed = {(int(status), name) for status, code, _ in table(HTTP, "## Problem codes") for name in names(code)}
    contract = {(status, code) for route in ROUTES for status, codes in route.codes.items() for code in codes}
    assert contract <= listed
    assert listed - contract <= {(400, "bad_request"), (405, "method_not_allowed")}


def test_the_payload_fields_are_those_that_are_taken() -> None:
    declared = [field.encode_name for field in fields(EmailPayload)]
    assert [min(names(row[0])) for row in table(HTTP, "### `POST /webhook/email`")] == declared


def test_the_headers_that_may_not_be_given_are_all_listed() -> None:
    (sentence,) = re.findall(r"These headers are set by the service.*?\n\n", HTTP, re.DOTALL)
    listed = {name.lower() for name in names(sentence)}
    assert {*FORBIDDEN_HEADERS, *FORBIDDEN_PREFIXES, "idempotency_header"} <= listed


def test_the_statuses_and_the_reasons_are_all_explained() -> None:
    assert [min(names(row[0])) for row in table(README, "## How an e-mail travels")] == [state.value for state in State]
    assert {min(names(row[0])) for row in table(README, "## Dead letters")} == {reason.value for reason in Reason}
    outcomes = {min(names(row[0])) for row in table(MAIL, "## What a reply means")}
    assert outcomes == {outcome.value for outcome in Outcome} - {"cut"}


def test_every_command_is_described() -> None:
    listed = " ".join(row[0] for row in table(README, "## Commands"))
    single = {
        command.name for command in (cli.run_everything, cli.stats, cli.pause, cli.resume, cli.check, cli.send_test)
    }
    single |= {command.name for command in (cli.erase, cli.secret, cli.end_outage)}
    grouped = {f"{group.name} {name}" for group in (cli.dead_letters, cli.emails) for name in group.commands}
    assert {name for name in single | grouped if f"`flask {name}" not in listed} == set()


def test_every_event_of_the_log_is_declared_with_its_level() -> None:
    levels: dict[str, set[str]] = {}
    for level, event in logged():
        levels.setdefault(event, set()).add(level)
    chosen = {"accepted", "duplicate", "mismatch", "deferred", "dead_lettered", "delivered", "discarded", "released"}
    chosen |= {"sent", "stale_outcome", "replayed", "absorbed"}
    assert EVENTS.keys() == levels.keys() | chosen
    for event, found in levels.items():
        assert found <= {*EVENTS[event][0].split(", "), "LOG"}, event


def logged() -> Iterator[tuple[str, str]]:
    """Every event that a file of the package logs by a name of its own; lines in plain words have blanks."""
    for path in (ROOT / "emailsvc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("debug", "info", "warning", "error", "exception", "log"):
                literals = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                for text in literals:
                    if isinstance(text, str) and re.fullmatch(r"[a-z_]+", text):
                        yield node.func.attr.upper().replace("EXCEPTION", "ERROR"), text


def test_the_connections_of_a_process_are_as_many_as_it_says() -> None:
    assert f"A process holds at most {extensions.POOL_SIZE}: " in OPERATING


def test_the_threads_of_a_web_process_are_as_many_as_it_says_and_hold_a_connection_to_redis_each() -> None:
    assert f"(gunicorn, {serving.threads} threads a process)" in README
    assert f"a web process up to {serving.threads} (one a thread)" in OPERATING


def test_the_processes_to_name_are_those_of_the_procfile_that_go_on() -> None:
    (named,) = re.findall(r"`honcho start ([a-z ]+)`", README)
    lines = (ROOT / "Procfile").read_text().splitlines()
    assert named.split() == [line.partition(":")[0] for line in lines if "flask db upgrade" not in line]


def test_the_largest_attachment_is_as_large_as_it_says(site: Site, make_app: Callable[[Config], Flask]) -> None:
    (told,) = re.findall(r"under the default `MAX_REQUEST_BYTES` about ([0-9.]+) MB", HTTP)
    client = make_app(site.config).test_client()
    for size, status in ((float(told), 202), (float(told) + 0.1, 413)):
        content = base64.b64encode(bytes(int(size * 1e6))).decode()
        attachment = {"filename": "a.bin", "content_type": "application/octet-stream", "content": content}
        email = payload("large", body="", attachments=[attachment])
        answer = client.post("/webhook/email", json=email, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == status, size


# Private authorities


class TlsRedis(Redis):
    """Its certificate is its own authority."""

    def __init__(self, folder: Path) -> None:
        self.authority, self._key = folder / "certificate.pem", folder / "key.pem"
        super().__init__()

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}?ssl_ca_certs={self.authority}"

    def command(self) -> list[str]:
        tls = ["--tls-port", str(self.port), "--tls-cert-file", str(self.authority), "--tls-key-file", str(self._key)]
        return [*super().command(), "--port", "0", *tls, "--tls-auth-clients", "no"]


def test_a_redis_with_a_private_authority_is_trusted_when_the_url_names_it(tmp_path: Path) -> None:
    Certificate(tmp_path)
    server: TlsRedis = started(lambda: TlsRedis(tmp_path))
    try:
        queue.build(load({"REDIS_URL": server.url}, tmp_path)).storage.enqueue(b"one")
        with pytest.raises(RedisError, match="certificate verify failed"):
            queue.build(load({"REDIS_URL": server.url.partition("?")[0]}, tmp_path)).storage.enqueue(b"two")
        assert "`?ssl_ca_certs=/path/to/authority.pem`" in OPERATING
    finally:
        server.close()


def test_a_mail_server_with_a_private_authority_is_trusted_when_the_environment_names_it(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    with Smtpd(tls=certificate.server) as server:
        check = (
            "from emailsvc.mail import smtp; from emailsvc.settings import parsers; smtp.check(parsers.smtp_url('{}'))"
        )
        command = [sys.executable, "-c", check.format(f"smtps://127.0.0.1:{server.port}")]
        trusting = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "certificate.pem")}
        assert subprocess.run(command, cwd=ROOT, env=trusting, capture_output=True).returncode == 0
        assert b"certificate verify failed" in subprocess.run(command, cwd=ROOT, capture_output=True).stderr
    assert "`SSL_CERT_FILE=/path/to/authority.pem`" in OPERATING


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            other = (path.parent / name).resolve() if name else path
            assert other.exists(), target
            assert not anchor or anchor in anchors(other.read_text()), target


def anchors(document: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
