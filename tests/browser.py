"""A headless Chromium for tests of pages: the DevTools protocol over a pipe, with nothing but Python's library.

    with Browser() as page:
        page.open(url, width=390)
        page.click("#again")
        assert page.evaluate("document.title") == "..."
        assert not page.problems and page.requests == [url]

A test with the fixture `browser` is skipped where there is no Chromium, or no pipe to inherit (Windows).
"""

import base64
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {
    "Backspace": 8,
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


class Browser:
    """One tab. `problems` holds what its console, its policy and its scripts complained of, and every dialog;
    `requests` the addresses it asked for, `data:` left out. Both are emptied by `open`.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        if os.name != "posix":
            pytest.skip("drives Chromium over inherited pipes, which Windows has not")
        self.timeout, self.problems, self.requests = timeout, [], []
        self._events: list[str] = []
        self._buffer, self._session, self._id = b"", None, 0
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        # Chromium reads commands from descriptor 3 and answers on 4. A group of its own: its helpers end with it.
        commands, self._out = self._pipe()
        self._in, answers = self._pipe()
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, answers, 4)]
        self._pid = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=nothing + pipes, setpgroup=0)
        os.close(commands)
        os.close(answers)
        try:
            (tab,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
            attached = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.killpg(self._pid, signal.SIGKILL)  # not yet waited for, so the group is still there
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    @staticmethod
    def _pipe() -> tuple[int, int]:
        """A pipe whose ends are none of the descriptors that the child gets."""
        import fcntl  # here, since Windows has none

        pair = os.pipe()
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in pair]
        for fd in pair:
            os.close(fd)
        return moved[0], moved[1]

    # The protocol

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read(time.monotonic() + self.timeout, method)
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self, deadline: float, what: str) -> dict[str, Any]:
        """The next message. An event is noted down on the way."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0.0))
            chunk = os.read(self._in, 1 << 16) if ready else b""
            if not chunk:
                raise TimeoutError(f"{what}: Chromium {'closed its pipe' if ready else 'did not answer'}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self._note(message["method"], message["params"])
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        self._events.append(event)
        if event == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif event == "Runtime.exceptionThrown":
            thrown = params["exceptionDetails"]
            self.problems.append(thrown.get("exception", {}).get("description", thrown["text"]))
        elif event == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {params['message']}")
            self._id += 1  # answered without waiting: the page stands still until then
            answer = {"id": self._id, "method": "Page.handleJavaScriptDialog", "params": {"accept": False},
                      "sessionId": self._session}  # fmt: skip
            os.write(self._out, json.dumps(answer).encode() + b"\0")

    # What a person does

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load `url` in a window of that size, and wait for its load event."""
        self.resize(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url="about:blank")  # a fragment alone would not load anew
        self.problems, self.requests, self._events = [], [], []
        answer = self.call("Page.navigate", url=url)
        if answer.get("errorText"):
            raise RuntimeError(f"{url}: {answer['errorText']}")
        deadline = time.monotonic() + self.timeout
        while "Page.loadEventFired" not in self._events or self.evaluate("document.readyState") != "complete":
            self._read(deadline, url)

    def resize(self, width: int, height: int = 900) -> None:
        """The window's size in CSS pixels; below 500 only emulation can do it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise. A thrown error is raised here."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise RuntimeError(thrown.get("exception", {}).get("description", thrown["text"]))
        return answer["result"].get("value")

    def wait_for(self, script: str, timeout: float | None = None) -> Any:
        """The value of `script` as soon as it is truthy."""
        deadline = time.monotonic() + (timeout or self.timeout)
        while not (value := self.evaluate(script)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {script}")
            time.sleep(0.05)
        return value

    def _middle(self, selector: str) -> dict[str, float]:
        found = self.evaluate(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              if (!element?.checkVisibility()) throw new Error({json.dumps(f"nothing to see at {selector}")});
              element.scrollIntoView({{block: "center", behavior: "instant"}});
              const boxes = [...element.getClientRects()];  // one a line, and a blank at its end has no width
              const box = boxes.reduce((a, b) => (b.width > a.width ? b : a));
              return {{x: box.x + box.width / 2, y: box.y + box.height / 2}};
            }})()"""
        )
        return found

    def hover(self, selector: str) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **self._middle(selector))

    def click(self, selector: str) -> None:
        """A real press and release in the middle of the first match."""
        place = self._middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def tap(self, selector: str) -> None:
        """A finger on the first match."""
        place = self._middle(selector)
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[place])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.call("Emulation.setTouchEmulationEnabled", enabled=False)

    def press(self, key: str) -> None:
        """One of `KEYS`, to whatever has the focus."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    # What a person sees

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than its window."""
        return self.evaluate("document.documentElement.scrollWidth - innerWidth")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        shot = self.call(
            "Page.captureScreenshot",
            captureBeyondViewport=whole,
            **({"clip": self._whole()} if whole else {}),
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def _whole(self) -> dict[str, float]:
        return {**self.call("Page.getLayoutMetrics")["cssContentSize"], "scale": 1.0}

    def pdf(self, path: Path) -> None:
        """The page as printed on A4."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", **paper)["data"]))
