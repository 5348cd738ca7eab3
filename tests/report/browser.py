"""A headless Chromium that tells what a page does: errors, and requests for anything else.

It is spoken to in the DevTools protocol through a pipe, so that nothing but Chromium is needed.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
# Chromium reads from descriptor 3 and writes to 4
START = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60.0  # seconds that any answer may take


@dataclass
class Visit:
    """What was seen of one page: `errors` in words, and `requests`, addresses besides its own."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def found() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A started Chromium; see `open_browser`."""

    def __init__(self, to: Any, of: Any) -> None:
        self.to, self.of, self.count, self.events = to, of, 0, []

    def read(self) -> dict[str, Any]:
        """The next message."""
        text = bytearray()
        while (byte := self.of.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium has ended")
            text += byte
        return json.loads(text)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; events that come meanwhile are kept in `events`."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        self.to.write(json.dumps(message | ({"sessionId": session} if session else {})).encode())
        self.to.write(b"\0")
        self.to.flush()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)
        raise TimeoutError(method)

    def visit(self, page: pathlib.Path, screenshot: pathlib.Path | None = None) -> Visit:
        """Open a page, unfold all of it, and look what it does."""
        self.events.clear()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable", session)
        own = page.resolve().as_uri()
        self.ask("Page.navigate", session, url=own)
        end = time.monotonic() + PATIENCE
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < end, f"{own} does not load"
            self.events.append(self.read())
        # two frames later all is drawn, also what was folded
        self.evaluate(
            session,
            "document.querySelectorAll('details').forEach(each => each.open = true);"
            "new Promise(then => requestAnimationFrame(() => requestAnimationFrame(then)))",
        )
        self.evaluate(session, "new Promise(then => setTimeout(then, 100))")
        if screenshot is not None:
            self.photograph(session, screenshot)
        self.ask("Target.closeTarget", targetId=target)
        return told(self.events, own)

    def evaluate(self, session: str, script: str) -> Any:
        """What a script gives."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        return self.ask("Runtime.evaluate", session, **asked)["result"].get("value")

    def photograph(self, session: str, file: pathlib.Path) -> None:
        """The whole page as PNG."""
        import base64

        size = self.ask("Page.getLayoutMetrics", session)["cssContentSize"]
        clip = {"x": 0, "y": 0, "scale": 1, "width": size["width"], "height": size["height"]}
        made = self.ask("Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(made["data"]))


def told(events: list[dict[str, Any]], own: str) -> Visit:
    """Errors and requests among the events of a visit to the page `own`."""
    seen = Visit()
    for event in events:
        name, about = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            seen.errors.append(f"{details['text']} {thrown}")
        elif name == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            seen.errors.append(json.dumps(about["args"])[:400])
        elif name == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            seen.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif name == "Network.requestWillBeSent":
            address = about["request"]["url"]
            if address != own and not address.startswith("data:"):
                seen.requests.append(address)
    return seen


@contextlib.contextmanager
def open_browser(path: str) -> Iterator[Browser]:
    """Start the Chromium at `path`, with a profile of its own, and end it afterwards."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), path, *FLAGS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        with open(ours_out, "wb") as to, open(ours_in, "rb") as of:
            browser = Browser(to, of)
            try:
                yield browser
                browser.ask("Browser.close")
            finally:
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
