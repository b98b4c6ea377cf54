"""A mail server for the tests, on a loopback port: it can misbehave at every step and remembers what it really took.

In a test::

    with Smtpd() as server:
        server.script("ada@example.com", Plan("rcpt", "451 4.7.1 later"), Plan("dot", DROP))
        ...
        assert server.copies("<id@example.com>") == 1

By itself, for campaigns in which processes are killed around it (the log holds a JSON line for each message taken,
written before the reply is sent)::

    python -m tests.smtpd --port 0 --log accepted.jsonl --fault drop-after-dot=0.01 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import email
import email.policy
import json
import os
import random
import re
import ssl
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, cast


@dataclass(frozen=True)
class Drip:
    """A reply whose bytes come one by one."""

    text: str
    pause: float = 1.0


@dataclass(frozen=True)
class Later:
    """Wait before the next step of an action."""

    seconds: float


DROP = "drop"  # close the connection
HANG = "hang"  # never answer
STALL = "stall"  # nor read any more
Step = str | bytes | Drip | Later  # text is a reply line (or one of these words), bytes go out as they are
Action = Step | tuple[Step, ...]


@dataclass(frozen=True)
class Plan:
    """What to do ``at`` "mail", "rcpt", "data" or "dot" of one mail instead of saying yes.

    ``taken``: whether the message counts as accepted; by default it does for 2yz and for anything that is not a reply.
    """

    at: str
    do: Action
    taken: bool | None = None
    forever: bool = False

    @property
    def accepts(self) -> bool:
        if self.taken is not None:
            return self.taken
        first = _steps(self.do)[0]
        return not isinstance(first, str) or first in (DROP, HANG, STALL) or first.startswith("2")


@dataclass(frozen=True)
class TakenMessage:
    sender: str
    recipients: tuple[str, ...]
    data: bytes  # as sent, without dot-stuffing
    message_id: str
    connection: int
    at: float = field(default_factory=time.time)

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.data, policy=email.policy.default)


@dataclass
class Behaviour:
    """What holds for every connection; may be changed while the server runs."""

    greeting: Action = "220 mail.example.test ESMTP"
    ehlo: Action | None = None  # instead of the features
    auth: Action | None = None  # instead of comparing with ``login``
    login: tuple[str, str] | None = None  # user and password; None does not advertise AUTH
    require_login: bool = False
    quit: Action = "221 2.0.0 bye"
    rset: Action = "250 2.0.0 reset"
    starttls: ssl.SSLContext | None = None
    tls: ssl.SSLContext | None = None  # implicit, from the first byte; read when the server starts
    pipelining: bool = True
    smtputf8: bool = True
    dsn: bool = False
    size: int | None = 50_000_000
    mails_per_connection: int | None = None  # then 421
    idle_seconds: float | None = None  # after a mail; then one of ``last_words``
    last_words: tuple[Action, ...] = (("451 4.4.2 Timeout", DROP), ("554 5.4.2 idle too long", DROP))  # in turn
    command_delay: float = 0.0
    mail_delay: float = 0.0  # before the reply to the dot
    data_despite_refusal: bool = False  # answer DATA with 354 although no recipient was accepted
    lenient: bool = False  # also takes bare CR or LF for a line end: what SMTP smuggling hopes for
    keep_commands: bool = True
    keep_data: bool = True
    id_header: str = ""  # also count copies by this header
    decide: Callable[[TakenMessage], Plan | None] | None = None  # asked at the dot, after the scripts
    refuse: Callable[[str], str | None] | None = None  # asked at RCPT: a reply for this recipient, or None


class Smtpd:
    def __init__(self, port: int = 0, log: str | None = None, fsync: bool = False, **behaviour: Any) -> None:
        self.behaviour = Behaviour(**behaviour)
        self.host = "127.0.0.1"
        self.port = port
        self.accepted: list[TakenMessage] = []
        self.commands: list[tuple[int, str]] = []
        self.connections = 0
        self.open_connections = 0
        self.taken = 0
        self.conversations = 0  # between MAIL and the reply to the dot, now
        self.most_conversations = 0
        self.sessions: set[Session] = set()
        self._copies: Counter[str] = Counter()
        self._by_header: Counter[str] = Counter()
        self._scripts: dict[str, deque[Plan]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else None
        self._fsync = fsync
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="smtpd", daemon=True)

    # what a test says and asks

    def script(self, recipient: str, *plans: Plan) -> None:
        """Plans for the next mails to ``recipient``, each used once, in order. MAIL knows only ``"*"``, anybody."""
        self._scripts[recipient].extend(plans)

    def copies(self, message_id: str) -> int:
        with self._changed:
            return self._copies[message_id]

    def copies_by_header(self, value: str) -> int:
        with self._changed:
            return self._by_header[value]

    def duplicates(self) -> dict[str, int]:
        with self._changed:
            return {message_id: count for message_id, count in self._copies.items() if count > 1}

    def to(self, recipient: str) -> list[TakenMessage]:
        return [each for each in list(self.accepted) if recipient in each.recipients]

    def seen(self, verb: str) -> int:
        """How often a command was given, by its first word."""
        return sum(1 for _, line in list(self.commands) if line.upper().startswith(verb.upper()))

    def wait(self, condition: Callable[[], bool], deadline: float = 10.0) -> None:
        end = time.monotonic() + deadline
        with self._changed:
            while not condition():
                assert time.monotonic() < end, "the mail server waited in vain"
                self._changed.wait(0.02)  # not all that one may wait for tells us of itself

    def drop_all(self) -> None:
        """End every open connection, as a server does that restarts."""
        done = threading.Event()

        def drop() -> None:
            for session in list(self.sessions):
                session.drop()
            done.set()

        self._loop.call_soon_threadsafe(drop)
        done.wait(5)
        self.wait(lambda: self.open_connections == 0)

    # life

    def __enter__(self) -> Smtpd:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Smtpd:
        self._loop = asyncio.new_event_loop()
        started = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self._thread.start()
        started.result(10)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if self._log is not None:
            os.close(self._log)

    def close_door(self) -> None:
        """Refuse new connections from now on; those open stay."""
        asyncio.run_coroutine_threadsafe(self._close_server(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            lambda: Session(self, self._loop), self.host, self.port, ssl=self.behaviour.tls, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close_server(self) -> None:
        self._server.close()

    async def _shut_down(self) -> None:
        self._server.close()
        for session in list(self.sessions):
            session.abort()
        await asyncio.sleep(0.01)  # transports close themselves in the loop's next rounds
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # called by sessions, in the loop's thread

    def changed(self, **by: int) -> None:
        with self._changed:
            for name, step in by.items():
                setattr(self, name, getattr(self, name) + step)
            self.most_conversations = max(self.most_conversations, self.conversations)
            self._changed.notify_all()

    def plan(self, at: str, recipients: tuple[str, ...]) -> Plan | None:
        for key in (*recipients, "*"):
            plans = self._scripts.get(key)
            if plans and plans[0].at == at:
                return plans[0] if plans[0].forever else plans.popleft()
        return None

    def take(self, message: TakenMessage) -> None:
        header = self.behaviour.id_header
        key = _header(message.data, header) if header else ""
        if self._log is not None:
            record = {"at": message.at, "message_id": message.message_id, "id": key, "to": message.recipients}
            os.write(self._log, json.dumps(record).encode() + b"\n")
            if self._fsync:
                os.fsync(self._log)
        with self._changed:
            self.taken += 1
            self._copies[message.message_id] += 1
            if key:
                self._by_header[key] += 1
            if self.behaviour.keep_data:
                self.accepted.append(message)
            self._changed.notify_all()


class Session(asyncio.Protocol):
    """One connection: a line at a time, and nothing further while an action is going on."""

    transport: asyncio.Transport

    def __init__(self, server: Smtpd, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.buffer = bytearray()
        self.busy = False
        self.closed = True
        self.number = 0
        self.mails = 0
        self.heard = 0  # pieces of what the client sent
        self.in_data = False
        self.in_auth: list[str] | None = None
        self.logged_in = False
        self.conversing = False
        self.sender: str | None = None
        self.recipients: tuple[str, ...] = ()

    @property
    def behaviour(self) -> Behaviour:
        return self.server.behaviour

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.number:  # again, after STARTTLS
            return
        self.closed = False
        self.server.sessions.add(self)
        self.server.changed(connections=1, open_connections=1)
        self.number = self.server.connections
        self.act(self.behaviour.greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self.converse(False)
            self.server.sessions.discard(self)
            self.server.changed(open_connections=-1)

    def data_received(self, data: bytes) -> None:
        self.heard += 1
        self.buffer += data
        self.work()

    def drop(self) -> None:
        self.busy = True
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def converse(self, on: bool) -> None:
        if on != self.conversing:
            self.conversing = on
            self.server.changed(conversations=1 if on else -1)

    # acting

    def act(self, action: Action) -> None:
        self.busy = True
        delay = self.behaviour.command_delay
        if delay:
            self.loop.call_later(delay, self.go_on, deque(_steps(action)))
        else:
            self.go_on(deque(_steps(action)))

    def go_on(self, steps: deque[Step]) -> None:
        while steps and not self.closed:
            step = steps.popleft()
            if isinstance(step, Later):
                self.loop.call_later(step.seconds, self.go_on, steps)
                return
            if isinstance(step, Drip):
                bytewise = [piece for ch in step.text + "\r\n" for piece in (ch.encode(), Later(step.pause))]
                steps.extendleft(reversed(cast(list[Step], bytewise)))
            elif step in (HANG, STALL):
                self.transport.pause_reading() if step == STALL else None
                return
            elif step == DROP:
                self.drop()
                return
            else:
                self.transport.write(step if isinstance(step, bytes) else step.encode() + b"\r\n")
                if isinstance(step, str) and step.startswith("421"):
                    self.drop()
                    return
        self.busy = False
        self.loop.call_soon(self.work) if self.buffer else None

    # understanding

    def work(self) -> None:
        while self.buffer and not self.busy and not self.closed:
            if not (self.message() if self.in_data else self.line()):
                return

    def line(self) -> bool:
        line = self.cut(rb"\r\n|\r|\n" if self.behaviour.lenient else rb"\r\n")
        if line is None:
            return False
        text = line.decode("utf-8", "surrogateescape")
        if self.behaviour.keep_commands:
            self.server.commands.append((self.number, text))
            self.server.changed()
        if self.in_auth is not None:
            self.auth_line(text)
            return True
        verb = text[:4].upper()
        handler = getattr(self, f"do_{verb.lower()}", None) if verb.isalpha() else None
        if handler is None:
            self.act("502 5.5.2 no such command")
        else:
            handler(text)
        return True

    def message(self) -> bool:
        if self.buffer.startswith(b".\r\n"):
            del self.buffer[:3]
            self.dot(b"")
            return True
        ends = rb"(?:\r\n|\r|\n)\.(?:\r\n|\r|\n)" if self.behaviour.lenient else rb"\r\n\.\r\n"
        content = self.cut(ends)
        if content is None:
            return False
        self.dot(content + b"\r\n")
        return True

    def cut(self, end: bytes) -> bytes | None:
        found = re.search(end, self.buffer)
        if found is None:
            return None
        piece = bytes(self.buffer[: found.start()])
        del self.buffer[: found.end()]
        return piece

    # commands

    def do_ehlo(self, text: str) -> None:
        b = self.behaviour
        if b.ehlo is not None:
            return self.act(b.ehlo)
        secure = self.transport.get_extra_info("ssl_object") is not None
        features = ["8BITMIME", "ENHANCEDSTATUSCODES"]
        features += ["DSN"] * b.dsn
        features += ["PIPELINING"] * b.pipelining + ["SMTPUTF8"] * b.smtputf8
        features += ["STARTTLS"] * (b.starttls is not None and not secure)
        features += ["AUTH PLAIN LOGIN"] * (b.login is not None)
        features += [f"SIZE {b.size}"] * (b.size is not None)
        lines = ["mail.example.test", *features]
        self.act(tuple(f"250{'-' if number < len(lines) else ' '}{each}" for number, each in enumerate(lines, 1)))
        return None

    def do_star(self, text: str) -> None:
        context = self.behaviour.starttls
        if context is None:
            return self.act("502 5.5.1 not offered")
        self.busy = True
        self.buffer.clear()
        self.transport.pause_reading()
        self.transport.write(b"220 2.0.0 go ahead\r\n")
        self.loop.create_task(self.secure(context))
        return None

    async def secure(self, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError):  # the client did not like our certificate
            transport = await self.loop.start_tls(self.transport, self, context, server_side=True)
            if transport is not None:
                self.transport = transport
                self.busy = False
                self.work()
                return
        self.transport.abort()
        self.connection_lost(None)

    def do_auth(self, text: str) -> None:
        if self.behaviour.auth is not None:
            return self.act(self.behaviour.auth)
        words = text.split()
        self.in_auth = [words[1].upper(), *words[2:]]
        return self.auth_step()

    def auth_line(self, text: str) -> None:
        assert self.in_auth is not None
        self.in_auth.append(text)
        self.auth_step()

    def auth_step(self) -> None:
        assert self.in_auth is not None
        mechanism, given = self.in_auth[0], self.in_auth[1:]
        wanted = 1 if mechanism == "PLAIN" else 2
        if len(given) < wanted:
            return self.act("334 " + base64.b64encode([b"User", b"Password"][len(given)]).decode())
        words = [base64.b64decode(each).decode() for each in given]
        pair = tuple(words[0].split("\0")[1:]) if mechanism == "PLAIN" else tuple(words)
        self.in_auth = None
        self.logged_in = pair == self.behaviour.login
        return self.act("235 2.7.0 welcome" if self.logged_in else "535 5.7.8 user or password is wrong")

    def do_mail(self, text: str) -> None:
        b = self.behaviour
        if b.mails_per_connection is not None and self.mails >= b.mails_per_connection:
            return self.act("421 4.7.0 too many messages on this connection")
        if b.require_login and not self.logged_in:
            return self.act("530 5.7.0 authentication required")
        if self.sender is not None:
            return self.act("503 5.5.1 nested MAIL")
        plan = self.server.plan("mail", ())
        if plan is None or plan.accepts:
            self.sender, self.recipients = _path(text), ()
            self.converse(True)
        return self.act(plan.do if plan else "250 2.1.0 sender ok")

    def do_rcpt(self, text: str) -> None:
        if self.sender is None:
            return self.act("503 5.5.1 MAIL first")
        recipient = _path(text)
        plan = self.server.plan("rcpt", (recipient,))
        refusal = self.behaviour.refuse(recipient) if self.behaviour.refuse else None
        if plan is None and refusal:
            return self.act(refusal)
        if plan is None or plan.accepts:
            self.recipients += (recipient,)
        return self.act(plan.do if plan else "250 2.1.5 recipient ok")

    def do_data(self, text: str) -> None:
        plan = self.server.plan("data", self.recipients)
        if plan is not None:
            first = _steps(plan.do)[0]
            self.in_data = isinstance(first, str) and first.startswith("354")
            return self.act(plan.do)
        if not self.recipients and not self.behaviour.data_despite_refusal:
            return self.act("503 5.5.1 no valid recipients")
        self.in_data = True
        return self.act("354 go ahead")

    def dot(self, content: bytes) -> None:
        self.in_data = False
        self.mails += 1
        data = re.sub(rb"(?m)^\.", b"", content)
        message = TakenMessage(self.sender or "", self.recipients, data, _header(data, "Message-ID"), self.number)
        if not message.recipients:
            return self.answer_dot("554 5.5.1 no valid recipients")
        plan = self.server.plan("dot", message.recipients)
        if plan is None and self.behaviour.decide:
            plan = self.behaviour.decide(message)
        if plan is None or plan.accepts:
            self.server.take(message)
        return self.answer_dot(plan.do if plan else "250 2.0.0 ok: queued")

    def answer_dot(self, action: Action) -> None:
        self.sender, self.recipients = None, ()
        delay = self.behaviour.mail_delay
        steps = _steps(action)
        if HANG not in steps:
            self.converse(False)
        self.act((Later(delay), *steps) if delay else steps)
        if self.behaviour.idle_seconds is not None:
            self.loop.call_later(delay + self.behaviour.idle_seconds, self.end_idleness, self.heard)

    def end_idleness(self, heard: int) -> None:
        if heard == self.heard and not self.closed:
            words = self.behaviour.last_words
            self.act(words[self.number % len(words)])

    def do_rset(self, text: str) -> None:
        self.sender, self.recipients = None, ()
        self.converse(False)
        self.act(self.behaviour.rset)

    def do_noop(self, text: str) -> None:
        self.act("250 2.0.0 ok")

    def do_quit(self, text: str) -> None:
        self.act((*_steps(self.behaviour.quit), DROP))


def _steps(action: Action) -> tuple[Step, ...]:
    return action if isinstance(action, tuple) else (action,)


def _path(text: str) -> str:
    found = re.search("<(.*?)>", text)
    return found.group(1) if found else ""


def _header(data: bytes, name: str) -> str:
    found = re.search(rb"(?im)^" + re.escape(name.encode()) + rb":[ \t]*([^\r\n]*)", data.partition(b"\r\n\r\n")[0])
    return found.group(1).decode("utf-8", "replace") if found else ""


FAULTS = {
    "tempfail": Plan("dot", "451 4.3.0 try again", taken=False),
    "reject": Plan("dot", "550 5.7.1 no", taken=False),
    "drop-after-dot": Plan("dot", DROP, taken=True),
    "lost": Plan("dot", DROP, taken=False),
    "odd": Plan("dot", "354 what?", taken=True),
    "close": Plan("dot", ("250 2.0.0 ok", "421 4.3.2 going down"), taken=True),
    "hang": Plan("dot", HANG, taken=True),
}


def _chance(faults: dict[str, float], seed: int | None) -> Callable[[TakenMessage], Plan | None]:
    dice = random.Random(seed)

    def decide(_: TakenMessage) -> Plan | None:
        return next((FAULTS[name] for name, share in faults.items() if dice.random() < share), None)

    return decide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", help="append a JSON line for each message taken")
    parser.add_argument("--fsync", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each reply to a dot")
    parser.add_argument("--id-header", default="", help="the header that goes into the log as id")
    parser.add_argument("--no-pipelining", action="store_true")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=SHARE", help=", ".join(FAULTS))
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    faults = {name: float(share) for name, _, share in (fault.partition("=") for fault in options.fault)}
    server = Smtpd(
        options.port,
        options.log,
        options.fsync,
        mail_delay=options.delay,
        id_header=options.id_header,
        pipelining=not options.no_pipelining,
        keep_commands=False,
        keep_data=False,
        decide=_chance(faults, options.seed) if faults else None,
    ).start()
    print(server.port, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()  # until somebody ends this process
    server.stop()


if __name__ == "__main__":
    main()
