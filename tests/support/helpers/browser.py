"""A page in a real browser: chromium without a window, asked what became of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
                None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="skipped: no chromium")

# What is asked runs when all is loaded. The page's policy lets no other script run, so that this one is named in it.
_ASK = """
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => wrong.push(event.violatedDirective));
addEventListener("load", () => {
  const said = document.createElement("pre");
  said.id = "said";
  said.textContent = JSON.stringify({answer: (() => { QUESTION })(), wrong});
  document.body.append(said);
});
"""


def ask(page: Path, question: str, folder: Path, width: int = 1280) -> Any:
    """Loads a page from disk, runs the body of a function in it, and returns what that returned.

    Fails where the page, or the browser of it, said anything wrong.
    """
    script = _ASK.replace("QUESTION", question)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = page.read_text(encoding="utf-8")
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    at = html.index("<title>")
    asked = folder / "asked.html"
    asked.write_text(f"{html[:at]}<script>{script}</script>{html[at:]}", encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
               "--virtual-time-budget=4000", "--dump-dom", asked.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    told = json.loads(unescape(found[1]))
    assert told["wrong"] == [] and ":CONSOLE" not in done.stderr, (told["wrong"], done.stderr[-2000:])
    return told["answer"]
