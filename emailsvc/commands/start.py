"""`flask start`: the Procfile on one machine. Schema, web and worker; Ctrl-C or SIGTERM stops them cleanly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import click
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from emailsvc.context import service
from emailsvc.db import schema
from emailsvc.errors import brief
from emailsvc.settings.config import Config

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8000
READY_SECONDS = 30.0
STOP_SECONDS = 28.0
GUARD = 'while read -r word; do [ "$word" = done ] && exit; pids="$pids $word"; done; kill $pids'

Process = subprocess.Popen[bytes]


@click.command("start")
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here on 127.0.0.1, whatever PORT says.")
def run_everything(port: int | None) -> None:
    """Run everything on this machine until Ctrl-C."""
    own = service()
    try:
        if schema.is_older(own.engine):
            schema.upgrade(current_app._get_current_object())  # type: ignore[attr-defined]
    except SQLAlchemyError as exc:
        raise click.ClickException(f"The database cannot be used: {brief(exc)}; check DATABASE_URL.") from exc
    own.engine.dispose()
    host, chosen = _address(own.config, port)
    _claim(host, chosen)
    raise SystemExit(_run(own.config, host, chosen))


def _address(config: Config, port: int | None) -> tuple[str, int]:
    if port is None and config.port is not None:
        return "0.0.0.0", config.port  # noqa: S104 - as gunicorn does in a deploy
    return LOOPBACK, port or DEFAULT_PORT


def _claim(host: str, port: int) -> None:
    """Before anything starts: whoever has the port would answer in our place, and we would greet."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            hint = "Give --port another." if host == LOOPBACK else "Set PORT to another."
            raise click.ClickException(f"Cannot listen on {host}:{port}: {exc.strerror}. {hint}") from exc


def _run(config: Config, host: str, port: int) -> int:
    commands = _procfile()
    commands["web"] += f" --bind {host}:{port}"
    with _stop_requested() as requested, _guard() as guarded:
        processes = {name: guarded(_spawn(commands[name])) for name in ("web", "worker")}
        try:
            if _wait_until_ready(port, processes, requested):
                click.echo(_greeting(config, host, port), err=True)
            while not requested and all(process.poll() is None for process in processes.values()):
                time.sleep(0.1)
        finally:
            died = [name for name, process in processes.items() if process.poll() is not None]
            _stop(processes)
    if requested:
        return 0
    click.echo(f"emailsvc: the {' and '.join(died)} process ended by itself; its last lines above say why", err=True)
    return 1


def _procfile() -> dict[str, str]:
    lines = (ROOT / "Procfile").read_text().splitlines()
    return {name: command.strip() for name, _, command in (line.partition(":") for line in lines if line)}


def _spawn(command: str) -> Process:
    environ = {key: value for key, value in os.environ.items() if key not in ("FLASK_RUN_FROM_CLI", "FLASK_APP")}
    if not environ.get("WEB_CONCURRENCY", "").strip():  # gunicorn reads it itself, and an empty value means unset
        environ.pop("WEB_CONCURRENCY", None)
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
    # A session of its own: the terminal's Ctrl-C reaches this process alone, which then stops the others in order.
    return subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], cwd=ROOT, env=environ, start_new_session=True)  # noqa: S603


@contextmanager
def _guard() -> Iterator[Callable[[Process], Process]]:
    """Ends the processes given to it when this one is killed: then its pipe closes without the last word."""
    command = ["/bin/sh", "-c", GUARD]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, bufsize=0)  # noqa: S603 - our own
    assert guard.stdin is not None  # noqa: S101 - for the type checker
    pipe = guard.stdin

    def guarded(process: Process) -> Process:
        pipe.write(b"%d\n" % process.pid)
        return process

    try:
        yield guarded
    finally:
        with suppress(BrokenPipeError):  # it was killed itself
            pipe.write(b"done\n")
        pipe.close()
        guard.wait()


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    received: list[int] = []

    def note(signum: int, _frame: object) -> None:
        received.append(signum)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a closed terminal, unless under nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(processes: dict[str, Process]) -> None:
    for process in processes.values():
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes.values():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(port: int, processes: dict[str, Process], requested: list[int]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and not requested:
        if any(process.poll() is not None for process in processes.values()):
            return False
        try:
            with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.1)
    return False


def _greeting(config: Config, host: str, port: int) -> str:
    url = f"http://127.0.0.1:{port}"
    token = "" if not config.api_tokens else " -H 'Authorization: Bearer YOUR_API_TOKEN'"
    body = '{"email_id": "hello-1", "user": "you@example.com", "subject": "Hello", "body": "It works."}'
    destination = "your SMTP server" if config.smtp_url else f"files in {config.instance / 'outbox'}"
    return f"""
emailsvc is running. E-mails go to {destination}. Post to {url}/webhook/email, for example:

  curl{token} -H 'Content-Type: application/json' {url}/webhook/email -d '{body}'

See what became of it:  curl{token} {url}/stats
{_opened(host, port)}Stop with Ctrl-C.
"""


def _opened(host: str, port: int) -> str:
    if host == LOOPBACK:
        return ""
    return (
        f"PORT is set: {host}:{port}, every interface of this machine, is open. `flask start --port {port}` is not.\n"
    )
