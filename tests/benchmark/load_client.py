"""Many keep-alive clients in a process of their own, below asyncio: they cost less than a server.

    python load_client.py PORT CLIENTS SECONDS CORES < request

Each sends the request again and again; `%020d` in it becomes another number each time. What is
measured begins after a fifth more, when each has had an answer, and has another for each at the
least: they keep their connections, so how these are accepted is not part of it.
"""

import itertools
import json
import math
import os
import re
import selectors
import socket
import sys
import time
from statistics import median, quantiles

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
NUMBER = b"%020d"


def is_complete(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    if not head.startswith(b"HTTP/1.1 2"):
        raise SystemExit(answer.decode())
    length = LENGTH.search(head)
    return length is not None and len(body) >= int(length[1])


def send(clients: list[socket.socket], request: bytes, seconds: float) -> dict[str, float]:
    numbers = itertools.count(time.time_ns())

    def message() -> bytes:
        return request % next(numbers) if NUMBER in request else request

    selector = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    parts: dict[socket.socket, bytes] = {}
    taken = []
    warm = time.perf_counter() + seconds / 5
    begin = end = math.inf
    new = set(clients)  # without an answer
    done = False
    cpu = time.process_time()
    for client in clients:
        selector.register(client, selectors.EVENT_READ, client)
        client.sendall(message())
        sent[client] = time.perf_counter()
    count = len(clients)
    while sent:
        for key, _ in selector.select():
            client = key.data
            data = client.recv(65_536)
            if not data:
                raise SystemExit("a connection was closed")
            answer = parts.pop(client, b"") + data
            if not is_complete(answer):
                parts[client] = answer
                continue
            now = time.perf_counter()
            start = sent.pop(client)
            if begin == math.inf:
                new.discard(client)
                if not new and now >= warm:
                    begin, end = now, now + seconds
            elif not done:
                taken.append(now - start)
                if now >= end and len(taken) >= len(clients):
                    done, end = True, now
            if not done:
                client.sendall(message())
                sent[client] = now
                count += 1
    return {
        "sent": count,
        "cpu_seconds": (time.process_time() - cpu) / count,
        "requests_per_second": len(taken) / (end - begin),
        "median_seconds": median(taken),
        "p99_seconds": quantiles(taken, n=100)[-1],
    }


def main() -> None:
    port, count, seconds, *cores = sys.argv[1:]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cores))
    request = sys.stdin.buffer.read()
    clients = [socket.create_connection(("127.0.0.1", int(port))) for _ in range(int(count))]
    for client in clients:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(json.dumps(send(clients, request, float(seconds))))


if __name__ == "__main__":
    main()
