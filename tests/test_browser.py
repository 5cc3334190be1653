"""The interactive documentation in a browser: it works without any other host, and shows failures.

Takes the machine's Chromium or Chrome; skipped without one.
"""

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import HOST
from tests.support.databases import Database
from tests.support.services import Service


class Operation:
    """One operation on the page, opened to be tried out."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.block = page.locator(f"[id^=operations-][id*={name}]")
        self.block.locator(".opblock-summary").click()
        self.block.get_by_role("button", name="Try it out").click()
        self.body = self.block.locator("textarea.body-param__text")

    def execute(self, body: str | None = None, **parameters: str) -> int:
        """Send the request, and return the status; the page shows the response."""
        if body is not None:
            self.body.fill(body)
        for name, value in parameters.items():
            self.block.locator(f'tr[data-param-name="{name}"] input').fill(value)
        with self.page.expect_response("**/items**") as answer:
            self.block.locator("button.execute").click()
        status: int = answer.value.status
        shown = self.block.locator(".live-responses-table")
        expect(shown.locator(".response-col_status").last).to_contain_text(str(status))
        if status >= 400:
            problem = answer.value.json()
            expect(shown).to_contain_text(problem["title"])
            expect(shown).to_contain_text(problem["request_id"])
        return status


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_the_documentation_shows_examples_and_every_failure_and_asks_no_other_host(
    service: Service, migrated: Database, page: Page
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))

    with service.serve(**migrated.variables, MAX_BODY_SIZE="1000") as server:
        origin = f"http://{HOST}:{server.client.base_url.port}"
        shown = page.goto(f"{origin}/docs")
        assert (
            shown is not None and "default-src 'self'" in shown.headers["content-security-policy"]
        )

        create = Operation(page, "create_item")
        expect(create.body).to_have_value('{\n  "name": "Spanner",\n  "description": "13 mm"\n}')
        assert create.execute() == 201
        assert create.execute() == 409
        assert create.execute('{"name": ""}') == 422
        assert create.execute('{"name": "' + "x" * 1000 + '"}') == 413

        read = Operation(page, "read_item")
        assert read.execute(item_id="1") == 200
        assert read.execute(item_id="2") == 404

        update = Operation(page, "update_item")
        stale = {"item_id": "1", "If-Match": '"7-00000000"'}
        assert update.execute('{"name": "Wrench"}', **stale) == 412

        migrated.take_away()
        assert read.execute(item_id="1") == 503
        migrated.give_back()
        assert read.execute(item_id="1") == 200

    assert {url for url in asked if not url.startswith((f"{origin}/", "data:"))} == set()
    assert [line for line in said if "Content Security Policy" in line] == []
