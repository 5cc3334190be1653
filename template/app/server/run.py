"""How the service is served: `python -m app.server`, whose options are uvicorn's."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

import uvicorn

MAX_HEAD_SIZE = 16_384  # bytes; h11 refuses a head that is longer
MAX_CONNECTIONS = 1_000  # or half of the process's descriptors, if those are fewer
# Seconds in which requests are answered after SIGTERM. With what the lifespan takes to end, it fits
# into the 30 that Kubernetes waits.
GRACEFUL_TIMEOUT = 20
KEEP_ALIVE_TIMEOUT = 75  # seconds without a request; proxies keep a connection for less


def serve(arguments: Sequence[str] | None = None) -> None:
    """Run uvicorn; arguments and `UVICORN_…` variables override these options."""
    options = {
        "app": "app.main:app",
        "http": "app.server.protocol:Protocol",
        "loop": "auto" if find_spec("uvloop") is None else "app.server.loop:Loop",
        "limit_concurrency": max_connections(),
        "h11_max_incomplete_event_size": MAX_HEAD_SIZE,
        "timeout_graceful_shutdown": GRACEFUL_TIMEOUT,
        "timeout_keep_alive": KEEP_ALIVE_TIMEOUT,
        "server_header": False,  # which would tell strangers what serves
        "ws_max_size": 262_144,
        "ws_per_message_deflate": False,  # a kilobyte could become a megabyte
    }
    uvicorn.main(arguments, prog_name="python -m app.server", default_map=options)


def max_connections() -> int:
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] % sys.maxsize  # RLIM_INFINITY is -1
    return min(MAX_CONNECTIONS, descriptors // 2)
