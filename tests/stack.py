"""The service as a Procfile deploy: its own copy of the code, the Procfile's command lines, real signals."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.factories import payload
from tests.servers import alive, children, descendants, free_port, start_process, wait_for
from tests.smtpd import Smtpd

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "acceptance-token-of-the-tests"

SHORT = {
    "SMTP_TIMEOUT_SECONDS": "2",
    "SMTP_REPLY_TIMEOUT_SECONDS": "2",
    "LEASE_SECONDS": "5",
    "SWEEP_SECONDS": "2",
}
"""Leases and sweeps in which a test can wait for a repair."""

INHERITED = ("HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_CONFIG")
"""The last is set when coverage is measured, and then by these processes, too."""


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _hear_hang_ups() -> None:
    """As in a terminal; under nohup they are ignored, and children inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Process:
    """One line of the Procfile, running, in a process group of its own, its output in a file."""

    def __init__(self, name: str, command: str, folder: Path, environ: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with open(log, "ab") as output:
            self._process = start_process(
                ["sh", "-c", f"exec {command}"],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_hear_hang_ups,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    @property
    def children(self) -> list[int]:
        return children(self.pid)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def term(self, times: int = 1) -> None:
        """SIGTERM, as often as the platform may send it."""
        for _ in range(times):
            self.signal(signal.SIGTERM)

    def kill9(self) -> None:
        """The whole family at once, as a dyno that is taken away."""
        family = [self.pid, *descendants(self.pid)]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)
        wait_for(lambda: not any(map(alive, family)), 10, f"{self.name} to be dead")

    def kill9_child(self, rng: random.Random) -> None:
        """One process of a web dyno; gunicorn starts another."""
        if victims := self.children:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(victims), signal.SIGKILL)

    def wait(self, seconds: float = 30) -> int:
        wait_for(lambda: not self.running, seconds, lambda: f"{self.name} to end; its log:\n{self.output()[-3000:]}")
        return self._process.wait()


class Stack:
    """``Stack(folder, DATABASE_URL=…, REDIS_URL=…, SMTP_URL=…)``; what is not given is not set, as on a laptop.

    ``code``: the checkout that is deployed, this one unless told.
    """

    def __init__(self, folder: Path, code: Path = ROOT, /, **environ: str) -> None:
        self.folder, self.logs = folder / "app", folder / "logs"
        self.logs.mkdir(parents=True)
        self.processes: list[Process] = []
        self.port = free_port()
        _deploy(code, self.folder)
        self.commands = dict(_procfile(self.folder / "Procfile"))
        tools = Path(sys.executable).parent
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.environ = {
            **inherited,
            "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            "PORT": str(self.port),
            "WEB_CONCURRENCY": "2",
            "API_TOKENS": TOKEN,
            **environ,
        }
        self._local = threading.local()

    # Processes

    def run(self, command: str, *, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["sh", "-c", f"exec {command}"],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
        return done

    def release(self) -> None:
        self.run(self.commands["release"])

    def spawn(self, name: str, command: str | None = None, **environ: str) -> Process:
        log = self.logs / f"{name}-{len(self.processes)}.log"
        line = command or self.commands[name]
        process = Process(name, line, self.folder, {**self.environ, **environ}, log)
        self.processes.append(process)
        return process

    def start(self, *, workers: int = 2, release: bool = True) -> tuple[Process, list[Process]]:
        """Release, one web dyno (of WEB_CONCURRENCY processes) and so many worker dynos; returns when all is ready.

        A database that has the schema, and an SQLite file, which gets it by itself, need no release.
        """
        if release:
            self.release()
        web = self.spawn("web")
        consumers = [self.spawn("worker") for _ in range(workers)]
        self.wait_ready(live_worker=workers > 0)
        return web, consumers

    def wait_ready(self, *, live_worker: bool = True, seconds: float = 40) -> None:
        path = "/readyz" if live_worker else "/healthz"

        def ready() -> bool:
            dead = [process for process in self.processes if process.returncode not in (None, 0, -signal.SIGKILL)]
            assert not dead, f"{dead[0].name} ended with {dead[0].returncode}:\n{dead[0].output()[-3000:]}"
            with suppress(OSError, http.client.HTTPException):
                return self.get(path).status == 200
            return False

        wait_for(ready, seconds, lambda: f"{path} to be 200; {self.tail()}", pause=0.05)

    def tail(self, length: int = 1500) -> str:
        return "\n".join(f"--- {p.log.name}, {p.returncode=}\n{p.output()[-length:]}" for p in self.processes)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        print(self.tail())

    def stop(self) -> None:
        """Everything ends, by SIGTERM or after 30 s by SIGKILL; for the clean-up, no assertion."""
        self.hang_up()
        for process in self.processes:
            process.signal(signal.SIGCONT)
            process.term()
        deadline = time.monotonic() + 30
        for process in self.processes:
            while process.running and time.monotonic() < deadline:
                time.sleep(0.02)
            if process.running:
                process.kill9()

    # HTTP, one kept connection per thread

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Response:
        """Never asked twice, but for a GET whose kept connection has ended meanwhile."""
        kept = getattr(self._local, "connection", None) is not None
        try:
            return self._request(method, path, body, headers)
        except (OSError, http.client.HTTPException):
            if method != "GET" or not kept:
                raise
            return self._request(method, path, body, headers)

    def _request(self, method: str, path: str, body: Any, headers: dict[str, str] | None) -> Response:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=35)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**self._headers(data), **(headers or {})})
            response = connection.getresponse()
            reply = Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (OSError, http.client.HTTPException):
            self.hang_up()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self.hang_up()
        return reply

    def _headers(self, data: bytes | None) -> dict[str, str]:
        content = {"Content-Type": "application/json"} if data is not None else {}
        token = self.environ.get("API_TOKENS")
        return content | ({"Authorization": f"Bearer {token}"} if token else {})

    def hang_up(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def post(self, payload: Any, path: str = "/webhook/email") -> Response:
        return self.request("POST", path, payload)

    def post_many(self, ids: Iterable[str]) -> None:
        """In one request, so that all of them wait at once however slow this machine is."""
        answer = self.post({"emails": [payload(email_id) for email_id in ids]}, "/webhook/email/batch")
        assert answer.status == 200, answer

    def post_until_answered(self, payload: Any, seconds: float = 60) -> tuple[Response, int]:
        """As every sender does: again until there is an answer below 500. Returns it and the number of tries."""
        deadline, tries = time.monotonic() + seconds, 0
        while True:
            tries += 1
            reply = None
            with suppress(OSError, http.client.HTTPException):
                reply = self.post(payload)
            if reply is not None and reply.status < 500:
                return reply, tries
            assert time.monotonic() < deadline, f"no answer to {payload!r} in {seconds:g} s, last {reply!r}"
            time.sleep(0.05)

    def get(self, path: str) -> Response:
        return self.request("GET", path)

    def stats(self) -> dict[str, Any]:
        reply = self.request("GET", "/stats", headers={"Accept": "application/json"})
        assert reply.status == 200, reply
        stats: dict[str, Any] = reply.json
        return stats

    def dead_letters(self, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.get(f"/stats/dead-letters?limit=200{query}{cursor}").json
            found += page["dead_letters"]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def wait_settled(self, seconds: float = 60) -> dict[str, Any]:
        """Until nothing waits and nothing is in hand; returns the statistics."""

        def settled() -> dict[str, Any] | None:
            stats = self.stats()
            return stats if stats["pending"] == 0 and stats["sending"] == 0 else None

        stats = wait_for(settled, seconds, lambda: f"nothing pending or sending: {self.stats()}", pause=0.1)
        assert stats is not None
        return stats

    def together(self, clients: int, jobs: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
        """Each job once, by concurrent clients with a kept connection each; results in the order of the jobs."""

        def hang_up_after(share: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
            try:
                return [(number, do(job)) for number, job in share]
            finally:
                self.hang_up()

        numbered = list(enumerate(jobs))
        shares = [numbered[start::clients] for start in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            results = [pair for share in pool.map(hang_up_after, shares) for pair in share]
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]


def copies(server: Smtpd) -> Counter[str]:
    """How many copies of each e-mail the server took, by the email_id that its recipient tells."""
    return Counter(recipient.partition("@")[0] for mail in list(server.accepted) for recipient in mail.recipients)


def smtp_url(server: Smtpd) -> str:
    return f"smtp://127.0.0.1:{server.port}"


def _procfile(path: Path) -> list[tuple[str, str]]:
    lines = [line.partition(":") for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [(name.strip(), command.strip()) for name, _, command in lines]


def _deploy(code: Path, folder: Path) -> None:
    """What a platform would copy: no tests, no .env, an instance folder of its own."""
    folder.mkdir()
    (folder / "instance").mkdir()
    shutil.copytree(code / "emailsvc", folder / "emailsvc")
    for name in ("wsgi.py", "Procfile"):
        shutil.copy(code / name, folder / name)
