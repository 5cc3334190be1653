"""What an answer promises to its client."""

from concurrent.futures import Future

import httpx2


def unavailable(response: httpx2.Response) -> bool:
    """Return whether the answer is 503, and invites a retry wherever one is safe."""
    safe = response.status_code != 503 or not (
        is_outcome_unknown(response) and response.request.method in ("POST", "PATCH")
    )
    return response.status_code == 503 and (response.headers.get("retry-after") == "1") == safe


def cut_short(sent: Future[httpx2.Response]) -> bool:
    """Return whether a request got no answer, or one that leaves its outcome unknown."""
    if isinstance(sent.exception(), httpx2.TransportError):
        return True
    return unavailable(sent.result())


def is_outcome_unknown(response: httpx2.Response) -> bool:
    """Return whether a change may or may not be stored, so that a retry may store it twice."""
    found: bool = response.json()["type"] == "/problems/outcome-unknown"
    return found
