"""What every transport promises, asked of each of them."""

from __future__ import annotations

import email
import email.policy
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from emailsvc.clock import monotonic
from emailsvc.mail import Message, Outcome, Result, files
from emailsvc.mail.files import FileTransport
from emailsvc.mail.memory import MemoryTransport
from emailsvc.mail.smtp import SmtpTransport
from emailsvc.mail.transport import Transport
from tests.factories import a_message
from tests.smtpd import Smtpd
from tests.transport import at, send


class Post(ABC):
    """A transport and the place where its mail ends up."""

    transport: Transport

    @abstractmethod
    def messages(self) -> list[bytes]: ...

    def close(self) -> None:
        self.transport.close()


class SmtpPost(Post):
    def __init__(self, folder: Path) -> None:
        self.server = Smtpd().start()
        self.transport = SmtpTransport(at(self.server), idempotency_header="X-Id")

    def messages(self) -> list[bytes]:
        return [accepted.data for accepted in self.server.accepted]

    def close(self) -> None:
        super().close()
        self.server.stop()


class FilePost(Post):
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "outbox"
        self.transport = FileTransport(self.folder, idempotency_header="X-Id")

    def messages(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("*"))]


class MemoryPost(Post):
    def __init__(self, folder: Path) -> None:
        self.memory = MemoryTransport(idempotency_header="X-Id")
        self.transport = self.memory

    def messages(self) -> list[bytes]:
        return self.memory.messages


@pytest.fixture(params=[SmtpPost, FilePost, MemoryPost])
def post(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Post]:
    post: Post = request.param(tmp_path)
    yield post
    post.close()


def test_a_mail_arrives_whole(post: Post) -> None:
    mail = a_message(subject="Grüße", body="Hallo,\n.\nbis bald\n", html="<p>Hallo</p>", headers={"X-Order": "7"})
    result = send(post.transport, mail)
    assert result.outcome is Outcome.SENT
    (raw,) = post.messages()
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert (message["subject"], message["to"], message["message-id"]) == ("Grüße", mail.recipient, mail.message_id)
    assert (message["x-order"], message["auto-submitted"]) == ("7", "auto-generated")
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n").rstrip("\n") == mail.body.rstrip("\n")


def test_the_id_goes_into_the_configured_header(post: Post) -> None:
    send(post.transport, a_message(email_id="order 7/ä"))
    message = email.message_from_bytes(post.messages()[0], policy=email.policy.default)
    assert message["x-id"] == "order 7/ä"


def test_a_second_copy_is_seen_as_one(post: Post) -> None:
    mail = a_message()
    assert [send(post.transport, mail).outcome for _ in range(2)] == [Outcome.SENT] * 2
    assert len(post.messages()) == 2


def test_a_mail_that_cannot_be_built_is_rejected(post: Post) -> None:
    result = send(post.transport, a_message(subject="a\nBcc: eve@example.com"))
    assert result.outcome is Outcome.REJECTED
    assert "control characters" in result.reply
    assert post.messages() == []


def test_a_deadline_that_passes_just_before_the_dot_sends_nothing(post: Post) -> None:
    """The last look at the clock comes after everything else, the worker's note included."""
    assert send(post.transport).outcome is Outcome.SENT  # so that connecting takes nothing of the time
    deadline = monotonic() + 1.0
    noted: list[float] = []

    def slowly() -> None:
        noted.append(monotonic())
        while monotonic() < deadline:
            time.sleep(0.01)

    result = post.transport.send(a_message(), deadline=deadline, reply_timeout=10.0, passing_dot=slowly)
    assert result.outcome is Outcome.DEFERRED
    assert "deadline" in result.reply
    assert (len(noted), len(post.messages())) == (1, 1)


def test_a_deadline_that_has_passed_sends_nothing(post: Post) -> None:
    assert send(post.transport, timeout=-0.001).outcome is Outcome.DEFERRED
    assert post.messages() == []


def test_the_dot_is_announced_once_and_before_anything_arrives(post: Post) -> None:
    seen: list[int] = []

    def passing_dot() -> None:
        seen.append(len(post.messages()) if not isinstance(post, FilePost) else len(list(post.folder.glob("*.eml"))))

    send(post.transport, passing_dot=passing_dot)
    assert len(seen) == 1
    assert len(post.messages()) == 1


def test_an_exception_before_the_dot_is_a_result(post: Post) -> None:
    def passing_dot() -> None:
        raise RuntimeError("oops")

    result = send(post.transport, passing_dot=passing_dot)
    assert result.outcome is Outcome.REJECTED
    assert "RuntimeError: oops" in result.reply
    assert post.messages() == []


def test_a_dot_that_cannot_be_noted_is_not_sent(post: Post) -> None:
    def passing_dot() -> None:
        raise OSError(28, "No space left on device")

    result = send(post.transport, passing_dot=passing_dot)
    assert result.outcome in (Outcome.DEFERRED, Outcome.OUTAGE)
    assert "No space left" in result.reply
    assert post.messages() == []


def test_stop_just_before_the_dot_cuts(post: Post) -> None:
    assert send(post.transport, passing_dot=lambda: post.transport.stop(60.0)).outcome is Outcome.CUT
    assert post.messages() == []


def test_after_stop_nothing_starts(post: Post) -> None:
    assert send(post.transport).outcome is Outcome.SENT
    post.transport.stop(1.0)
    assert send(post.transport).outcome is Outcome.CUT
    assert len(post.messages()) == 1


def test_close_may_be_called_twice_and_sending_goes_on_after_it(post: Post) -> None:
    send(post.transport)
    post.transport.close()
    post.transport.close()
    assert send(post.transport).outcome is Outcome.SENT


# files alone


def test_files_have_safe_names_whatever_the_id(tmp_path: Path) -> None:
    transport = FileTransport(tmp_path / "outbox")
    ids = ["../../etc/passwd", "a/b", "..", ".", "ä" * 200, "x" * 255, "con\\aux", "\u202e"]
    for email_id in ids:
        assert send(transport, a_message(email_id=email_id)).outcome is Outcome.SENT
    names = [path.name for path in (tmp_path / "outbox").iterdir()]
    assert len(names) == len(ids)
    assert all(name.endswith(".eml") and name.isascii() and not name.startswith(".") for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["outbox"]


def test_a_folder_that_cannot_be_written_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    result = send(FileTransport(tmp_path / "outbox"))
    assert result.outcome is Outcome.OUTAGE
    assert "outbox" in result.reply


def test_a_full_disk_is_an_outage_and_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = send(FileTransport(tmp_path))
    assert result.outcome is Outcome.OUTAGE
    assert "No space left" in result.reply
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_overwritten_even_within_the_same_microsecond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "utcnow", lambda: datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC))
    transport = FileTransport(tmp_path)
    mail = a_message()
    assert [send(transport, mail).outcome for _ in range(5)] == [Outcome.SENT] * 5
    assert len(list(tmp_path.iterdir())) == 5


# memory alone


def test_memory_answers_as_it_is_told() -> None:
    later = Result(Outcome.DEFERRED, "451 later", 451)
    unknown = Result(Outcome.UNCERTAIN, "no reply")
    transport = MemoryTransport([later, unknown, lambda mail: Result(Outcome.REJECTED, mail.subject)])
    mails = [a_message(subject=f"mail {number}") for number in range(4)]
    assert [send(transport, mail).reply for mail in mails] == ["451 later", "no reply", "mail 2", "250 kept in memory"]
    assert transport.attempts == mails
    assert transport.delivered == [mails[1], mails[3]]


def test_memory_can_lose_what_it_is_uncertain_of() -> None:
    unknown = Result(Outcome.UNCERTAIN, "no reply")
    transport = MemoryTransport(always=unknown, lose_uncertain=True)
    mail: Message = a_message()
    assert send(transport, mail) is unknown
    assert (transport.attempts, transport.delivered) == ([mail], [])
