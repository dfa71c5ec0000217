"""A real browser for tests of pages: Chromium, headless."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

JSON = {"Content-Type": "application/json"}


def eventually(holds: Callable[[], Any], seconds: float = 120) -> None:
    """Waits for a condition of the outside world."""
    pause = threading.Event()
    for _ in range(round(seconds / 0.1)):
        if holds():
            return
        pause.wait(0.1)
    raise AssertionError(f"did not happen within {seconds} s")


class Browser:
    """Chromium by its driver's own protocol, so that nothing else needs to be installed."""

    def __init__(self, folder: Path, name: str = "localhost") -> None:
        """Args: folder: for its files. name: one that leads to this machine."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self._address.rpartition(":")[2]
        with (folder / "driver.log").open("w") as log:
            self._driver = subprocess.Popen(
                ["chromedriver", f"--port={port}"], stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        quiet = ("background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
        options = [f"--disable-{each}" for each in quiet]
        options += ["--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
        options += ["--window-size=1400,900", f"--host-resolver-rules=MAP {name} 127.0.0.1"]
        try:
            eventually(lambda: self._call("status")["ready"], 30)
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": options}}}}
            self._session = f"session/{self._call('session', wanted)['sessionId']}"
        except BaseException:
            self.close()
            raise

    def open(self, address: str) -> None:
        self._call(f"{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        return self._call(f"{self._session}/execute/sync", {"script": script, "args": []})

    def text(self) -> str:
        return self.run("return document.body ? document.body.innerText : ''")

    def click(self, selector: str, text: str) -> None:
        """Clicks the first visible element of that CSS selector and text, once it is there; goes on in a window that
        this opens."""
        script = """
            const [selector, text] = arguments;
            const all = [...document.querySelectorAll(selector)];
            const shown = all.filter(e => e.innerText && e.innerText.trim() === text);
            const found = shown.find(e => !shown.some(inner => inner !== e && e.contains(inner)));
            // Tabs listen to the press of the button.
            found?.dispatchEvent(new MouseEvent('mousedown', {bubbles: true, button: 0}));
            found?.click();
            return Boolean(found);
        """
        eventually(
            lambda: self._call(f"{self._session}/execute/sync", {"script": script, "args": [selector, text]}), 60
        )
        handle = self._call(f"{self._session}/window/handles")[-1]
        self._call(f"{self._session}/window", {"handle": handle})

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call(f"{self._session}/screenshot"))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self._address}/{path}", data, JSON)) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:1000]) from None
        except OSError:
            return {"ready": False}
