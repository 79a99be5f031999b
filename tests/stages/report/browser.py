"""A page in headless Chromium (Debian's package): what it shows, what it says on the console, what it asks of the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium")
_BROWSER = "not an origin"


@dataclass(frozen=True)
class Visit:
    """dom: after loading, as HTML; console: its lines; requests: URLs that the page asked for beyond files and data URIs."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: Path, scratch: Path) -> Visit:
    """Open a page from the disk."""
    assert CHROMIUM is not None
    log = scratch / "net.json"
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr",
            "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    requests = _requests(log.read_text(encoding="utf-8"))
    return Visit(done.stdout, re.findall(r":CONSOLE.*", done.stderr), requests)


def _requests(log: str) -> list[str]:
    """What the page asked for; what the browser asks for on its own behalf has no origin."""
    try:
        events = json.loads(log)["events"]
    except ValueError:  # the browser was gone before it had closed the list
        events = json.loads(log.rstrip().rstrip(",") + "]}")["events"]
    asked = [event["params"] for event in events if event.get("params", {}).get("initiator", _BROWSER) != _BROWSER]
    return [each["url"] for each in asked if not each["url"].startswith(("file:", "data:"))]
