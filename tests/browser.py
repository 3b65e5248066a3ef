"""A Chromium that tests steer: it opens pages, presses keys, runs expressions, takes pictures, notes what is logged.

It is spoken to over two pipes in the DevTools protocol (`--remote-debugging-pipe`), so nothing has to be installed and
no port is opened.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from conftest import chromium

KEYS: Final[dict[str, dict[str, Any]]] = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Escape": {"key": "Escape", "code": "Escape", "windowsVirtualKeyCode": 27},
}


class Browser:
    """One page of a headless Chromium of its own. `log`: what its console said, and requests that failed."""

    def __init__(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
        flags += ["disable-background-networking", "disable-component-update", "remote-debugging-pipe"]
        flags += [f"user-data-dir={self._profile}"]
        # the child finds the pipes at the descriptors 3 and 4
        moved = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "bash", str(chromium()), *(f"--{flag}" for flag in flags), "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._rest, self._session = 0, b"", None
        self.log: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            self.call("Emulation.setEmulatedMedia", features=features)

    def resize(self, width: int, height: int) -> None:
        """The size of the page's window in CSS pixels; below 600 it counts as a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, address: str) -> float:
        """Open an address and return the seconds until its load event."""
        self._loaded = False
        start = time.perf_counter()
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._read(60)
        return time.perf_counter() - start

    def reload(self) -> None:
        """Load the same address again."""
        self._loaded = False
        self.call("Page.reload")
        while not self._loaded:
            self._read(60)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited. Raises RuntimeError if it throws."""
        reply = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in reply:
            raise RuntimeError(str(reply["exceptionDetails"]))
        return reply["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> float:
        """Wait until an expression is true and return the seconds that took."""
        start = time.perf_counter()
        while not self.run(f"Boolean({condition})"):
            if time.perf_counter() - start > seconds:
                raise TimeoutError(f"{condition}: not true after {seconds} s; the page says: {self.text()[:2000]}")
            time.sleep(0.02)
        return time.perf_counter() - start

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key of `KEYS`."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, modifiers=8 if shift else 0, **KEYS[key])

    def type(self, text: str) -> None:
        """Type a text into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def text(self) -> str:
        """The text that the page shows."""
        return str(self.run("document.body.innerText"))

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        """Write a PNG of the window, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read(120)
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return dict(reply["result"])

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next message; events are noted."""
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], seconds)[0]:
                raise TimeoutError(f"Chromium was silent for {seconds} s")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium has ended")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        event, parameters = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.consoleAPICalled":
            self.log.append(" ".join(str(a.get("value", a)) for a in parameters["args"]))
        elif event == "Runtime.exceptionThrown":
            self.log.append(str(parameters["exceptionDetails"].get("exception", parameters["exceptionDetails"])))
        elif event == "Log.entryAdded":
            self.log.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        return message

    def close(self) -> None:
        """End the browser and delete its profile."""
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
