"""The documentation's site: it builds, its links lead somewhere, its pages need no other host."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.support.processes import environment

HOST = "http://127.0.0.1"
SIZES = {"phone": (390, 844), "desktop": (1440, 900)}  # width and height, in CSS pixels
ASSETS = {"src", "srcset", "poster", "data"}


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of `source`, of which nothing else is at hand, into `folder/docs/.site`."""
    shutil.copytree(source, folder / "docs")
    return subprocess.run(
        ["zensical", "build", "--strict", "--config-file", "docs/zensical.toml"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def site(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(template / "docs", folder)
    assert (built.returncode, "No issues found" in built.stdout) == (0, True), built.stdout
    return folder / "docs/.site"


class Links(HTMLParser):
    """What a page refers to, what it loads, and what can be referred to in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.assets: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name in ASSETS or (tag, name) == ("link", "href"):
                self.assets.add(value or "")
            elif name == "href":
                self.links.add(value or "")


def pages(site: Path) -> dict[str, Path]:
    """Return the pages by their addresses."""
    return {
        f"{HOST}/{file.relative_to(site).as_posix().removesuffix('index.html')}": file
        for file in sorted(site.rglob("index.html"))
    }


def test_a_site_with_a_broken_link_is_not_built(template: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(template / "docs", tmp_path / "source"))
    index = source / "index.md"
    index.write_text(f"{index.read_text()}\n[Nowhere](reference/settings.md#nowhere)\n")

    assert build(source, tmp_path).returncode != 0


def test_every_page_is_in_the_navigation(site: Path) -> None:
    # Whatever is there is a link of every page, and nothing else is.
    linked = [
        {address} | {urljoin(address, link) for link in Links(file).links}
        for address, file in pages(site).items()
    ]

    assert pages(site).keys() <= set.intersection(*linked)


def test_every_link_and_every_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    found = {address: Links(file) for address, file in pages(site).items()}

    broken = []
    for address, page_links in found.items():
        for link in page_links.links | page_links.assets:
            target, anchor = urldefrag(urljoin(address, link))
            if not target.startswith(HOST) or urlsplit(target).port:
                continue
            if target in found:
                if unquote(anchor) not in found[target].anchors:
                    broken.append((address, link))
            elif not (site / urlsplit(target).path.lstrip("/")).is_file():
                broken.append((address, link))
    assert broken == []


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    for address, file in pages(site).items():
        assets = {urljoin(address, asset) for asset in Links(file).assets}
        assert {asset for asset in assets if not asset.startswith((HOST, "data:"))} == set(), file


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever).start()
        yield f"{HOST}:{server.server_port}/"
        server.shutdown()


def test_a_page_has_the_colours_that_the_system_has_now(address: str, page: Page) -> None:
    # Pictures follow the system: on a page that kept those of the first visit they would not fit.
    for system, scheme in (("light", "default"), ("dark", "slate"), ("light", "default")):
        page.emulate_media(color_scheme=system)  # type: ignore[arg-type]
        page.goto(address)
        expect(page.locator("body")).to_have_attribute("data-md-color-scheme", scheme)


def test_every_page_fits_every_screen_and_asks_no_other_host(
    site: Path, address: str, page: Page
) -> None:
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    first, *_ = pages(site)
    page.goto(first.replace(f"{HOST}/", address))
    page.wait_for_load_state("networkidle")
    # Each page would build an index of all words once more.
    nothing = json.loads((site / "search.json").read_text()) | {"items": []}
    page.route("**/search.json", lambda route: route.fulfill(json=nothing))

    for path in pages(site):
        page.goto(path.replace(f"{HOST}/", address))
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            # A table that is too wide scrolls by itself, and not the page with it.
            needed = page.evaluate("document.documentElement.scrollWidth")
            assert needed <= width, (path, size)

    assert {url for url in asked if not url.startswith((address, "data:"))} == set()
    assert errors == []
