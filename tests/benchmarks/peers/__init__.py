"""The other sides: what else one would take. Programs of their own, in an environment of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.servers import wait_for
from tests.stack import Process

HERE = Path(__file__).resolve().parent

REQUIREMENTS = ("django-post_office==3.12", "celery[redis]==5.7", f"psycopg[binary]=={version('psycopg')}")


def environment() -> Path:
    """The ``bin`` folder of a virtual environment with ``REQUIREMENTS``, made by the first who asks."""
    mark = hashlib.sha256(" ".join((sys.version, *REQUIREMENTS)).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"emailsvc-benchmarks-{os.getuid()}-{mark}"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(REQUIREMENTS)} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *REQUIREMENTS], check=True, stdout=sys.stderr)
        (folder / "complete").touch()
    return folder / "bin"


def versions(tools: Path, *names: str) -> str:
    """``Django 5.2.19, …`` as installed there."""
    ask = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    return subprocess.run([tools / "python", "-c", ask, *names], capture_output=True, text=True, check=True).stdout[:-1]


def run(tools: Path, program: str, *arguments: str, environ: dict[str, str]) -> str:
    """To its end; what it printed."""
    done = subprocess.run(
        [tools / "python", HERE / program, *arguments],
        env={"PATH": f"{tools}:{os.environ.get('PATH', os.defpath)}", **environ},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{program} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def spawn(name: str, command: str, folder: Path, environ: dict[str, str], ready: str) -> Process:
    """Running, once its output has the word ``ready``."""
    folder.mkdir(parents=True, exist_ok=True)
    process = Process(name, command, folder, {"PATH": os.environ.get("PATH", os.defpath), **environ}, folder / "log")
    wait_for(
        lambda: ready in process.output() or not process.running, 60, lambda: f"{name} to start:\n{process.output()}"
    )
    assert process.running, process.output()
    return process
