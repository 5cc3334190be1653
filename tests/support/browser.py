"""A page in the machine's Chromium or Chrome."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Not loopback's: Swagger UI calls its makers' validator for other hosts.
HOST = "service.example"
OPTIONS = [
    f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-sandbox",  # root's
]


class NoBrowserError(Exception):
    """There is no Chromium and no Chrome on this machine."""


@contextmanager
def open_page() -> Iterator[Page]:
    """Open an empty page.

    Raises:
        NoBrowserError: if there is nothing to open it with.
    """
    browsers = [path for name in BROWSERS if (path := shutil.which(name))]
    if not browsers:
        raise NoBrowserError("no Chromium and no Chrome on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browsers[0], args=OPTIONS)
        page = browser.new_page()
        page.set_default_timeout(30_000)
        yield page
        browser.close()
