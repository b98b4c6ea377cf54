"""A headless Chromium, driven over a pipe in DevTools' protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.servers import MissingServer, wait_for

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
SECONDS = 20.0


class ScriptFailed(Exception):
    """What the page threw."""


class Browser:
    """One tab. ``complaints``: what its console said of errors; ``requested``: every address it asked for."""

    def __init__(self) -> None:
        binary = next(filter(None, map(shutil.which, NAMES)), None)
        if binary is None:
            raise MissingServer("Chromium is not installed (Debian: apt install chromium)")
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._folder = tempfile.mkdtemp(prefix="emailsvc-chromium-")
        self._number, self._unread, self._session = 0, b"", {}
        self._pid, self._out, self._in = _spawn([binary, *FLAGS, f"--user-data-dir={self._folder}"], self._folder)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        with suppress(OSError, AssertionError):
            self.call("Browser.close")
        deadline = time.monotonic() + 5
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.killpg(self._pid, signal.SIGKILL)
            time.sleep(0.02)
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            assert select.select([self._in], [], [], SECONDS)[0], f"Chromium says nothing for {SECONDS:g} s"
            more = os.read(self._in, 1 << 20)
            assert more, f"Chromium has ended: {Path(self._folder, 'log').read_text(errors='replace')[-2000:]}"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited when it is a promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise ScriptFailed(done["exceptionDetails"].get("exception", {}).get("description", str(done)))
        return done["result"].get("value")

    def wait(self, script: str) -> Any:
        """Until the expression is true, also when the page changes meanwhile."""

        def value() -> Any:
            with suppress(AssertionError, ScriptFailed):
                return self.run(script)

        return wait_for(value, SECONDS, lambda: f"{script} on\n{self.text()}", pause=0.05)

    def go(self, url: str) -> None:
        done = self.call("Page.navigate", url=url)
        assert "errorText" not in done, done
        self.wait("document.readyState === 'complete'")

    def text(self, selector: str = "body") -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, label: str, within: str = "body") -> None:
        """The button or link of this name, as soon as there is one to be seen."""
        find = (
            f"[...document.querySelectorAll({json.dumps(within)})].flatMap(e => [...e.querySelectorAll('button, a')])"
            f".find(e => e.checkVisibility() && !e.disabled && e.innerText.trim() === {json.dumps(label)})"
        )
        self.wait(f"Boolean({find})")
        self.run(f"(e => {{ e.focus(); e.click() }})({find})")

    def fill(self, selector: str, value: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(value)}")

    def show(self, *, width: int, scheme: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it is shown."""
        if not self.run("typeof axe === 'object'"):
            self.run(f"{axe_source()}; 0")
        found = self.run("axe.run().then(result => result.violations)")
        return [f"{one['id']}: {one['help']}: {node['html']}" for one in found for node in one["nodes"]]


def axe_source() -> str:
    """axe-core as a package of PyPI carries it, which need not be imported."""
    spec = find_spec("axe_playwright_python")
    if spec is None or not spec.submodule_search_locations:
        raise MissingServer("axe-core is not installed (pip install --no-deps axe-playwright-python)")
    return Path(spec.submodule_search_locations[0], "axe.min.js").read_text()


def _spawn(command: list[str], folder: str) -> tuple[int, int, int]:
    """Its pid, and our ends of its pipes, which it has as 3 and 4."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (their_in, their_out)]
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(high, (3, 4), strict=True)),
    ]
    try:
        pid = os.posix_spawn(command[0], command, {**os.environ, "HOME": folder}, file_actions=actions, setpgroup=0)
    finally:
        for fd in (their_in, their_out, *high):
            os.close(fd)
    return pid, our_out, our_in
