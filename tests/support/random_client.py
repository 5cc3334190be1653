"""Random requests and faults, and what must be stored after them."""

import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support.answers import unavailable
from tests.support.services import Server

SEED = int(os.environ.get("SEED", "1"))
REQUESTS = 6  # of a sequence; a fault happens amid one of them
DELAYS = (0, 0.002, 0.005, 0.02)  # seconds from a request to the end of a fault

State = tuple[str, int] | None  # the description and the version of an item that is stored
Fault = Callable[[], AbstractContextManager[None]]


@dataclass
class Request:
    """A request, its answer if all goes well, and the item that is stored then."""

    method: str
    path: str
    status: int
    name: str
    after: State
    options: dict[str, Any]


class RandomClient:
    """A client of one service, which knows what its answers promise."""

    def __init__(self, start: Callable[[], AbstractContextManager[Server]]) -> None:
        print(f"SEED={SEED}")
        self._start = start
        self._running = ExitStack()
        self.server = self._running.enter_context(start())
        self._random = random.Random(SEED)
        self._ids: dict[str, int] = {}
        self._possible: dict[str, set[State]] = {}
        self._made = 0

    def restart(self, signal: int) -> None:
        self.server.stop(signal)
        self.close()
        self.server = self._running.enter_context(self._start())

    def close(self) -> None:
        self._running.close()

    def go(self, sequences: int, faults: Mapping[Fault, int]) -> None:
        """Send sequences of requests, each with one of the weighted faults amid it."""
        kinds, weights = [*faults], [*faults.values()]
        for _ in range(sequences):
            disturbed = self._random.randrange(REQUESTS)
            for number in range(REQUESTS):
                planned = self._choose()
                if number == disturbed:
                    [fault] = self._random.choices(kinds, weights)
                    self._disturb(planned, fault)
                else:
                    self._conclude(planned, self._send(planned))

    def check(self, rows: Iterable[tuple[int, str, str, int]]) -> None:
        """Check that these rows are what was acknowledged."""
        stored: dict[str, State] = {}
        for key, name, description, version in rows:
            self._ids[name] = key
            stored[name] = (description, version)
        assert stored.keys() <= self._possible.keys()
        for name, states in self._possible.items():
            assert stored.get(name) in states, name
            self._possible[name] = {stored.get(name)}

    def _choose(self) -> Request:
        known = [
            (name, state)
            for name, states in self._possible.items()
            for state in states
            if state is not None and len(states) == 1
        ]
        self._made += 1
        text = f"text {self._made}"
        kind = self._random.choice(["create", "repeat", "read", "change", "stale", "delete"])
        if kind == "create" or len(known) < 3:
            name = f"item {self._made}"
            self._possible[name] = {None}
            sent = {"json": {"name": name, "description": text}}
            return Request("POST", "/items", 201, name, (text, 1), sent)
        name, state = self._random.choice(known)
        path, version = f"/items/{self._ids[name]}", state[1]
        if kind == "repeat":
            return Request("POST", "/items", 409, name, state, {"json": {"name": name}})
        if kind == "read":
            return Request("GET", path, 200, name, state, {})
        if kind == "delete":
            return Request("DELETE", path, 204, name, None, {})
        tag = version if kind == "change" else version + 1
        sent = {"json": {"description": text}, "headers": {"If-Match": f'"{tag}-00000000"'}}
        if kind == "change":
            return Request("PATCH", path, 200, name, (text, version + 1), sent)
        return Request("PATCH", path, 412, name, state, sent)

    def _send(self, planned: Request) -> httpx2.Response | None:
        try:
            return self.server.client.request(planned.method, planned.path, **planned.options)
        except httpx2.TransportError:
            return None

    def _disturb(self, planned: Request, fault: Fault) -> None:
        with ThreadPoolExecutor() as pool:
            with fault():
                sent = pool.submit(self._send, planned)
                time.sleep(self._random.choice(DELAYS))
            answer = sent.result()
        status = answer.status_code if answer is not None else None
        if status == planned.status:
            self._conclude(planned, answer)
            return
        assert answer is None or unavailable(answer), (fault, planned, answer)
        if answer is None or answer.json()["type"] == "/problems/outcome-unknown":
            self._possible[planned.name].add(
                planned.after
            )  # stored or not; all other refusals are not
        else:
            assert status == 503, (fault, planned)

    def _conclude(self, planned: Request, answer: httpx2.Response | None) -> None:
        assert answer is not None, planned
        log = self.server.log().splitlines()[-5:]
        assert answer.status_code == planned.status, (planned, answer.text, *log)
        if answer.status_code in (200, 201):
            body = answer.json()
            self._ids[planned.name] = body["id"]
            found = (body["description"], int(answer.headers["etag"].strip('"').partition("-")[0]))
            assert found == planned.after, planned
        self._possible[planned.name] = {planned.after}
