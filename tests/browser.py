"""A headless Chromium, driven through chromedriver's own HTTP interface (W3C WebDriver); needs no package."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request


def find_programs():
    """The paths of Chromium and its driver, or None where either is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window. Downloads go to the given folder; nothing is fetched from a network."""

    def __init__(self, programs, downloads):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen([programs[1], f"--port={port}"], stdout=subprocess.DEVNULL)
        self._session = None
        try:
            self._start(programs, downloads)
        except RuntimeError:
            self.close()
            raise

    def _start(self, programs, downloads):
        self._wait_for_driver()
        options = {
            "binary": programs[0],
            "args": [
                "--headless=new",
                "--no-sandbox",  # Chromium refuses to sandbox for root
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--disable-background-networking",
                "--no-first-run",
                "--hide-scrollbars",
                "--window-size=1280,900",
            ],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = answer["sessionId"]

    def _wait_for_driver(self):
        for _ in range(200):
            with contextlib.suppress(OSError):
                if self._call("GET", "/status")["ready"]:
                    return
            time.sleep(0.05)
        raise RuntimeError("chromedriver does not answer")

    def _call(self, method, path, body=None):
        path = f"/session/{self._session}{path}" if self._session else path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine
        try:
            with opener.open(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, path, width=1280, height=900, dark=False):
        """Load a file in a window of this size, and wait until its script has run."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])
        self.console()
        self._call("POST", "/url", {"url": path.as_uri()})
        self.settle()

    def settle(self):
        """Wait until what was scheduled for the next frame is drawn."""
        self._call(
            "POST",
            "/execute/async",
            {
                "script": "const done = arguments[0];"
                "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0)))",
                "args": [],
            },
        )

    def run(self, script, *args):
        """The value that a function body returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(args)})

    def press(self, selector, keys):
        """Type into the element; "\\ue014" is the right arrow (WebDriver's key codes)."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/value", {"text": keys})
        self.settle()

    def click(self, selector):
        """Scroll to the element and click it as a mouse does."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/click", {})
        self.settle()

    def choose(self, selector, value):
        """Set a form field as a user's input does."""
        self.run(
            "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}));"
            "field.dispatchEvent(new Event('change', {bubbles: true}))",
            selector,
            str(value),
        )
        self.settle()

    def texts(self, selector):
        """The texts of all elements that match."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def console(self):
        """Warnings and errors since the last call, the page's and the browser's."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def cdp(self, command, **parameters):
        """A command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path, whole=False):
        """A PNG of the window, or of the whole page."""
        taken = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self):
        if self._session:
            with contextlib.suppress(OSError, RuntimeError):
                self._call("DELETE", "")
        self._driver.terminate()
        self._driver.wait(10)
