"""The tests of the example. Yours: an update leaves it alone."""

import asyncio
import json
import reprlib
from typing import Any

import pytest
from httpx2 import AsyncClient

MAX_ID = 2**63 - 1
NEVER_ISSUED = [
    "",
    "1",
    "AAAA",
    "AAAAAAAAAAA",
    "AAAAAAAAAAF",  # another spelling of one
    "__________8",
    "not a cursor",
    "ключ",
    "a" * 10_000,
]


async def create(client: AsyncClient, name: str = "Spanner", **fields: Any) -> dict[str, Any]:
    response = await client.post("/items", json={"name": name, **fields})
    assert response.status_code == 201, response.text
    item: dict[str, Any] = response.json()
    return item


async def test_a_created_item_can_be_read_where_location_says(client: AsyncClient) -> None:
    created = await client.post("/items", json={"name": "Spanner", "description": "13 mm"})
    assert created.status_code == 201, created.text

    read = await client.get(created.headers["location"])

    assert read.json() == created.json()
    assert read.headers["etag"] == created.headers["etag"] == created.json()["etag"]
    assert created.json().keys() == {
        "id",
        "name",
        "description",
        "created_at",
        "updated_at",
        "etag",
    }
    assert created.json()["created_at"].endswith("Z")


async def test_text_comes_back_as_it_was_sent(client: AsyncClient) -> None:
    text = "zażółć 🛠️ \u202e'\"\\{{ }} \t\n" * 5

    item = await create(client, description=text)

    assert (await client.get(f"/items/{item['id']}")).json()["description"] == text


async def test_a_name_is_one_however_it_is_written(client: AsyncClient) -> None:
    item = await create(client, " Cafe\N{COMBINING ACUTE ACCENT} ")

    assert item["name"] == "Café"
    assert (await client.post("/items", json={"name": "Café"})).status_code == 409
    assert (await client.post("/items", json={"name": "  "})).status_code == 422


async def test_a_second_item_of_the_same_name_is_a_conflict(client: AsyncClient) -> None:
    await create(client)

    response = await client.post("/items", json={"name": "Spanner"})

    assert response.status_code == 409
    assert response.json()["type"] == "/problems/conflict"
    errors = response.json()["errors"]
    assert [(error["name"], error["code"]) for error in errors] == [("name", "unique")]
    assert len((await client.get("/items")).json()["items"]) == 1


async def test_one_of_many_creators_of_the_same_name_wins(client: AsyncClient) -> None:
    responses = await asyncio.gather(
        *(client.post("/items", json={"name": "Spanner"}) for _ in range(6))
    )

    assert sorted(response.status_code for response in responses) == [201] + 5 * [409]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": None},
        {"name": 1},
        {"name": "a\x00b"},
        {"name": "\ud800"},
        {"name": "a" * 201},
        {"name": "a", "description": "a" * 2001},
        {"name": "a", "description": "a\x00b"},
        {"name": "a", "id": 1},
        {"name": "a", "\ud800": 1},
        [],
        "text",
        None,
    ],
    ids=reprlib.repr,  # shortened
)
async def test_a_bad_body_is_refused(client: AsyncClient, body: object) -> None:
    content = json.dumps(body)
    headers = {"Content-Type": "application/json"}

    created = await client.post("/items", content=content, headers=headers)
    item = await create(client)
    patched = await client.patch(f"/items/{item['id']}", content=content, headers=headers)

    assert created.status_code == 422
    assert patched.status_code == (200 if body == {} else 422)
    assert (await client.get("/items")).json()["items"] == [item]


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_an_id_that_no_item_can_have_is_refused(client: AsyncClient, method: str) -> None:
    for item_id in (0, -1, MAX_ID + 1, 2**70, "x", "1.5", "01", "1.0", "%00"):
        response = await client.request(method, f"/items/{item_id}", json={"name": "a"})

        assert (item_id, response.status_code) == (item_id, 422)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_an_item_that_is_not_there_is_not_found(client: AsyncClient, method: str) -> None:
    for item_id in (1, MAX_ID):
        response = await client.request(
            method, f"/items/{item_id}", json={"name": "a"}, headers={"If-Match": "*"}
        )

        assert (item_id, response.status_code) == (item_id, 404)


async def test_a_patch_changes_what_it_names_and_nothing_else(client: AsyncClient) -> None:
    item = await create(client, description="13 mm")
    url = f"/items/{item['id']}"

    response = await client.patch(url, json={"description": None})

    changed = response.json()
    assert response.headers["etag"] == changed["etag"] != item["etag"]
    assert changed["updated_at"] > item["updated_at"]
    assert changed == item | {
        "description": None,
        "updated_at": changed["updated_at"],
        "etag": changed["etag"],
    }


async def test_an_item_is_sent_again_only_if_it_has_changed(client: AsyncClient) -> None:
    item = await create(client)
    url, headers = f"/items/{item['id']}", {"If-None-Match": item["etag"]}

    same = await client.get(url, headers=headers)
    await client.patch(url, json={"name": "Hammer"})
    changed = await client.get(url, headers=headers)

    assert (same.status_code, same.content) == (304, b"")
    assert (changed.status_code, changed.json()["name"]) == (200, "Hammer")


async def test_a_patch_to_a_name_that_is_taken_is_a_conflict(client: AsyncClient) -> None:
    await create(client, "Spanner")
    item = await create(client, "Hammer")

    response = await client.patch(f"/items/{item['id']}", json={"name": "Spanner"})

    assert response.status_code == 409
    assert (await client.get(f"/items/{item['id']}")).json() == item


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        ('"2-{form}"', None),
        ('"1-{form}", "2-{form}"', None),
        ('"2-00000000"', None),  # an older release's form of the same version
        ("*", None),
        ('"1-{form}"', 412),
        ('"9223372036854775807-{form}", "9999999999999999999-{form}"', 412),
        ('W/"2-{form}"', 412),
        ('"2"', 412),
        ("2-{form}", 412),
        ("", 412),
    ],
)
async def test_a_change_is_made_only_to_the_version_that_if_match_names(
    client: AsyncClient, method: str, if_match: str, status: int | None
) -> None:
    item = await create(client)
    url = f"/items/{item['id']}"
    await client.patch(url, json={"name": "Hammer"})  # version 2
    form = item["etag"].strip('"').partition("-")[2]

    response = await client.request(
        method, url, json={"name": "Saw"}, headers={"If-Match": if_match.format(form=form)}
    )

    assert response.status_code == (status or {"PATCH": 200, "DELETE": 204}[method])
    left = [item["name"] for item in (await client.get("/items")).json()["items"]]
    assert left == (["Hammer"] if status else {"PATCH": ["Saw"], "DELETE": []}[method])


async def test_without_if_match_the_last_of_many_writers_wins(client: AsyncClient) -> None:
    url = f"/items/{(await create(client))['id']}"

    responses = await asyncio.gather(
        *(client.patch(url, json={"name": f"Name {n}"}) for n in range(8))
    )

    assert {response.status_code for response in responses} == {200}
    assert (await client.get(url)).headers["etag"].startswith('"9-')


async def test_with_if_match_one_of_many_writers_wins(client: AsyncClient) -> None:
    item = await create(client)
    url, headers = f"/items/{item['id']}", {"If-Match": item["etag"]}

    responses = await asyncio.gather(
        *(client.patch(url, json={"name": f"Name {n}"}, headers=headers) for n in range(8))
    )

    assert sorted(response.status_code for response in responses) == [200] + 7 * [412]


async def test_a_deleted_item_is_gone(client: AsyncClient) -> None:
    url = f"/items/{(await create(client))['id']}"

    response = await client.delete(url)

    assert (response.status_code, response.content) == (204, b"")
    assert "content-type" not in response.headers
    assert (await client.get(url)).status_code == 404


async def test_the_pages_of_a_list_hold_every_item_once_and_oldest_first(
    client: AsyncClient,
) -> None:
    items = [await create(client, f"Item {n}") for n in range(7)]

    found: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {"limit": 3}
    while True:
        page = (await client.get("/items", params=parameters)).json()
        found += page["items"]
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]

    assert found == items


async def test_a_list_without_items_is_an_empty_page(client: AsyncClient) -> None:
    assert (await client.get("/items")).json() == {"items": [], "next_cursor": None}


async def test_a_limit_out_of_bounds_is_refused(client: AsyncClient) -> None:
    for limit in (0, -1, 101, 2**70, "x", ""):
        response = await client.get("/items", params={"limit": limit})

        assert (limit, response.status_code) == (limit, 422)


async def test_a_parameter_that_the_list_does_not_have_is_refused(client: AsyncClient) -> None:
    for query in ("limits=1", "limit=1&limit=2", "cursor", "token=hunter2"):
        assert (query, (await client.get(f"/items?{query}")).status_code) == (query, 422)


async def test_a_cursor_that_nobody_issued_is_refused(client: AsyncClient) -> None:
    for cursor in NEVER_ISSUED:
        response = await client.get("/items", params={"cursor": cursor})

        assert (cursor, response.status_code) == (cursor, 422)
