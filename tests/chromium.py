"""A page opened from file:// in headless Chromium, with what went wrong in it and what it asked the network for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@dataclass
class Opened:
    """A page of the browser."""

    page: Any
    errors: list[str] = field(default_factory=list)
    """Exceptions, and what the console calls an error; a breach of the content security policy is one."""
    requests: list[str] = field(default_factory=list)
    """Every address asked for but the page itself and what it holds (data:, blob:)."""


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium; skips the test, and says why, where there is none."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on the PATH: install chromium or google-chrome")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield started
        started.close()


@contextmanager
def opened(started: Any, path: Path, *, width: int = 1280, height: int = 900, **context: Any) -> Iterator[Opened]:
    """A page in a context of its own, loaded; closed at the end."""
    surroundings = started.new_context(viewport={"width": width, "height": height}, **context)
    page = surroundings.new_page()
    found = Opened(page)
    page.on("console", lambda said: found.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    address = path.resolve().as_uri()

    def asked(request: Any) -> None:
        if request.url != address and not request.url.startswith(("data:", "blob:")):
            found.requests.append(request.url)

    page.on("request", asked)
    page.goto(address, wait_until="load")
    yield found
    surroundings.close()
