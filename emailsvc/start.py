"""`flask start`: the Procfile on one machine. Schema, web and worker; Ctrl-C or SIGTERM stops them cleanly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from emailsvc import schema
from emailsvc.config import Config
from emailsvc.errors import brief
from emailsvc.extensions import service

ROOT = Path(__file__).parent.parent
DEFAULT_PORT = 8000
READY_SECONDS = 30.0
STOP_SECONDS = 28.0


@click.command()
def start() -> None:
    """Run everything on this machine until Ctrl-C."""
    own = service()
    try:
        if schema.is_older(own.engine):
            schema.upgrade(current_app._get_current_object())  # type: ignore[attr-defined]
    except SQLAlchemyError as exc:
        raise click.ClickException(f"The database cannot be used: {brief(exc)}; check DATABASE_URL.") from exc
    own.engine.dispose()
    _claim_port(own.config)
    raise SystemExit(_run(own.config))


def _claim_port(config: Config) -> None:
    """Before anything starts: whoever has the port would answer in our place, and we would greet."""
    host, port = ("0.0.0.0", config.port) if config.port else ("127.0.0.1", DEFAULT_PORT)  # noqa: S104 - as gunicorn does
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise click.ClickException(f"Cannot listen on {host}:{port}: {exc.strerror}. Set PORT to another.") from exc


def _run(config: Config) -> int:
    commands = _procfile()
    with _stop_requested() as requested:
        processes = {name: _spawn(commands[name]) for name in ("web", "worker")}
        try:
            if _wait_until_ready(config, processes, requested):
                click.echo(_greeting(config), err=True)
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


def _spawn(command: str) -> subprocess.Popen[bytes]:
    environ = {key: value for key, value in os.environ.items() if key not in ("FLASK_RUN_FROM_CLI", "FLASK_APP")}
    for name in ("PORT", "WEB_CONCURRENCY"):  # gunicorn reads them itself, and an empty value counts as none
        if not environ.get(name, "").strip():
            environ.pop(name, None)
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
    # A session of its own: the terminal's Ctrl-C reaches this process alone, which then stops the others in order.
    return subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], cwd=ROOT, env=environ, start_new_session=True)  # noqa: S603


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    received: list[int] = []

    def note(signum: int, _frame: Any) -> None:
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


def _stop(processes: dict[str, subprocess.Popen[bytes]]) -> None:
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


def _wait_until_ready(config: Config, processes: dict[str, subprocess.Popen[bytes]], requested: list[int]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and not requested:
        if any(process.poll() is not None for process in processes.values()):
            return False
        try:
            with urlopen(f"{_address(config)}/healthz", timeout=1) as answer:  # noqa: S310 - our own loopback address
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.1)
    return False


def _address(config: Config) -> str:
    return f"http://127.0.0.1:{config.port or DEFAULT_PORT}"


def _greeting(config: Config) -> str:
    token = "" if not config.api_tokens else " -H 'Authorization: Bearer YOUR_API_TOKEN'"
    body = '{"email_id": "hello-1", "user": "you@example.com", "subject": "Hello", "body": "It works."}'
    mails = "your SMTP server" if config.smtp_url else f"files in {config.instance / 'outbox'}"
    return f"""
emailsvc is running. Mails go to {mails}. Post to {_address(config)}/webhook/email, for example:

  curl{token} -H 'Content-Type: application/json' {_address(config)}/webhook/email -d '{body}'

See what became of it:  curl{token} {_address(config)}/stats
Stop with Ctrl-C.
"""
