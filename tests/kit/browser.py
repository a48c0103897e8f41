"""A real Chromium, driven through its DevTools protocol over a pipe: no driver program and no network port."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 60.0  # seconds a command or event may take


class Browser:
    """One headless Chromium with a profile of its own and one page; use as a context manager."""

    def __init__(self, chromium: str, profile: Path, downloads: Path, width: int = 1200, height: int = 900) -> None:
        self._chromium, self._profile, self._downloads = chromium, profile, downloads
        self._size = width, height
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [
            self._chromium, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}", "--no-first-run", "--disable-background-networking",
        ]  # fmt: skip
        # Chromium reads commands from file descriptor 3 and writes to 4.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} 2>/dev/null'
        self._process = subprocess.Popen(["bash", "-c", shell, "bash", *command], pass_fds=(theirs_in, theirs_out))
        os.close(theirs_in)
        os.close(theirs_out)
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        width, height = self._size
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._downloads.mkdir(parents=True, exist_ok=True)
        session, self._session = self._session, None
        self.send(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self._downloads), eventsEnabled=True
        )
        self._session = session
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Its pipe closed, Chromium ends itself.
        os.close(self._to)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command's result; raises RuntimeError with the browser's words when it fails."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def wait_for(self, method: str, **params: Any) -> dict[str, Any]:
        """The next event of that name whose parameters agree."""
        while True:
            while self.events:
                event = self.events.pop(0)
                got = event.get("params", {})
                if event.get("method") == method and all(got.get(k) == v for k, v in params.items()):
                    return event
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._from, 2**16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, page: Path) -> None:
        """Load a file and wait until it is ready."""
        self.events.clear()
        self.send("Page.navigate", url=f"file://{page}")
        self.wait_for("Page.loadEventFired")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Scroll an element into view and click its middle, as a mouse would; it must be what is hit there."""
        quoted = json.dumps(selector)
        self.js(f"document.querySelector({quoted}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.js(
            f"(() => {{ const e = document.querySelector({quoted}), r = e.getBoundingClientRect();"
            "const x = r.left + r.width / 2, y = r.top + r.height / 2, hit = document.elementFromPoint(x, y);"
            "return {x, y, hits: !!hit && (e === hit || e.contains(hit) || hit.contains(e))}; })()"
        )
        assert box["hits"], f"{selector} is covered or out of view"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box["x"], y=box["y"], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.click(selector)
        self.send("Input.insertText", text=text)

    def download(self, selector: str) -> Path:
        """Click what downloads a file; returns the file."""
        self.events.clear()
        self.click(selector)
        began = self.wait_for("Browser.downloadWillBegin")["params"]
        self.wait_for("Browser.downloadProgress", guid=began["guid"], state="completed")
        return self._downloads / str(began["suggestedFilename"])

    def screenshot(self, path: Path) -> None:
        """What is in view, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
