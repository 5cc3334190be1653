"""The service's routers answer as FastAPI's do, and try no route needlessly."""

import random
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from httpx2 import ASGITransport, AsyncClient
from starlette.responses import PlainTextResponse
from starlette.routing import Host
from starlette.types import Scope

from app.routing import Router, find_route

PREFIXES = ("", "/a", "/a/b", "/b", "/{N}", "/{N}/a", "/a{N}", "/é")
PATHS = ("/", "/a", "/b", "/{N}", "/a/{N}/b", "/{N:int}")
PARTS = ("", "a", "b", "7", "a7", "é", "%61")


def build(router: type[APIRouter], chance: random.Random, depth: int = 0) -> APIRouter:
    """Return a router with routes of every kind, always the same for the same chance."""

    def choose(paths: tuple[str, ...]) -> str:  # a name may stand in a path only once
        return chance.choice(paths).replace("N", f"p{chance.getrandbits(40)}")

    made = router(prefix=choose(PREFIXES))
    for number in range(chance.randint(1, 3)):
        name = f"{depth}.{number}.{chance.random()}"
        kind = chance.choice(("route", "route", "route", "router", "mount", "plain", "host"))
        if kind == "router" and depth < 3:
            child = build(router, chance, depth + 1)
            made.include_router(child, prefix=choose(("/a", "/{N}", "/b")))
        elif kind == "mount":
            made.mount(choose(PREFIXES[1:]), PlainTextResponse(name))
        elif kind == "plain":
            made.add_route(choose(PATHS), answer(name))
        elif kind == "host":
            made.routes.append(Host("example.org", PlainTextResponse(name)))
        else:
            methods = [chance.choice(("GET", "POST"))]
            made.add_api_route(choose(PATHS), answer(name), methods=methods)
    return made


def answer(name: str) -> Any:
    async def handler(request: Any = None) -> PlainTextResponse:
        return PlainTextResponse(name)

    return handler


async def answers(router: type[APIRouter], seed: int) -> list[Any]:
    chance = random.Random(seed)
    app = FastAPI(openapi_url=None, redirect_slashes=chance.choice((True, False)))
    for _ in range(3):
        app.include_router(build(router, chance), prefix=chance.choice(("", "/a", "/{w}/b")))
    outer = FastAPI(openapi_url=None)
    outer.mount("/a", app)
    found: list[Any] = []
    for served in (app, outer):
        transport = ASGITransport(app=served)
        async with AsyncClient(transport=transport, base_url="http://example.org") as client:
            for _ in range(25):
                parts = "/".join(chance.choices(PARTS, k=chance.randint(1, 5)))
                path = "/" + parts.lstrip("/")
                response = await client.request(chance.choice(("GET", "POST")), path)
                headers = response.headers.get("allow"), response.headers.get("location")
                found.append((path, response.status_code, response.text, *headers))
    return found


@pytest.mark.parametrize("seed", range(8))
async def test_a_router_answers_as_fastapis_does(seed: int) -> None:
    assert await answers(Router, seed) == await answers(APIRouter, seed)


@pytest.mark.parametrize("prefix", ["/orders", "/{tenant}/orders"])
async def test_a_router_asks_its_routes_only_about_paths_with_its_prefix(prefix: str) -> None:
    asked: list[str] = []

    class Asked(APIRoute):
        def matches(self, scope: Scope) -> Any:
            asked.append(scope["path"])
            return super().matches(scope)

    router = Router(prefix=prefix, route_class=Asked)
    router.add_api_route("/{number}", answer("order"))
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        assert (await client.get("/v1/items/1")).status_code == 404
        assert asked == []
        found = await client.get(f"/v1{prefix.format(tenant=7)}/1")
    assert found.text == "order"


async def test_routes_are_read_once_whatever_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def iterate(routes: Any) -> Any:
        read.append(routes)
        return iter_route_contexts(routes)

    monkeypatch.setattr("app.routing.iter_route_contexts", iterate)
    app = FastAPI()
    app.get("/own")(answer("own"))
    app.state.found = []
    for name in ("/a", "/b"):
        mounted = FastAPI()
        mounted.get("/")(answer(name))
        app.mount(name, mounted)

    def find(inner: Any) -> Any:
        async def finding(scope: Scope, receive: Any, send: Any) -> None:
            await inner(scope, receive, send)
            app.state.found.append(find_route({**scope, "app": app}))

        return finding

    transport = ASGITransport(app=find(app))
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/own", "/a/", "/b/") * 3:
            assert (await client.get(path)).status_code == 200

    assert [found and found.path_format for found in app.state.found] == ["/own", None, None] * 3
    assert len(read) == 3
