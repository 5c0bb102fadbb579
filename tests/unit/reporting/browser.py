"""A headless Chromium, asked over the DevTools protocol: what a page loads, says, measures and looks like."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*", "--disable-extensions", "--mute-audio"),
)
# Seconds for the browser to come up, and for one answer of it, on a slow and busy machine.
START_S, ANSWER_S = 120.0, 60.0


def chromium() -> str | None:
    """The browser's path, or None."""
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


class Tab:
    """One page. Events that came while it loaded are in `events`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._last = socket, 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_S))
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)
            if message.get("method") == "Page.javascriptDialogOpening":
                # A dialog stops the page, and with it every answer. The event is kept for the test to see.
                closing = {"method": "Page.handleJavaScriptDialog", "params": {"accept": False}}
                self._socket.send(json.dumps({"id": 0} | closing))

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Loads a file in a window of this size and theme, and waits until it has settled."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + ANSWER_S
        while not self.of("Page.loadEventFired") and time.monotonic() < deadline:
            self.call("Runtime.evaluate", expression="0")
            time.sleep(0.05)
        assert self.of("Page.loadEventFired"), "the page did not load"

    def of(self, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of one kind."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, where: Path, *, whole: bool = True) -> None:
        """Saves a PNG of the page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, fromSurface=True)
        where.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])


@contextmanager
def browser() -> Iterator[Tab]:
    """A fresh browser with one empty page; it ends with the block."""
    path = chromium()
    assert path is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with connect(_page_address(Path(profile), process), max_size=None, open_timeout=ANSWER_S) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _page_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    deadline, port_file = time.monotonic() + START_S, profile / "DevToolsActivePort"
    while time.monotonic() < deadline:
        assert process.poll() is None, "the browser ended at once"
        lines = port_file.read_text().split() if port_file.is_file() else []
        if len(lines) == 2:
            with connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", open_timeout=ANSWER_S) as root:
                target = Tab(root).call("Target.createTarget", url="about:blank")["targetId"]
            return f"ws://127.0.0.1:{lines[0]}/devtools/page/{target}"
        time.sleep(0.1)
    raise AssertionError(f"the browser did not come up in {START_S:g} s")
