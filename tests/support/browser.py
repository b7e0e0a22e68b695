"""A real Chromium for the tests of pages; without one they are skipped, and say so."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH: pages are only tested in a browser"
)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """playwright's Browser. While it lives, this thread has an event loop that runs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
