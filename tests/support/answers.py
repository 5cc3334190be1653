"""What an answer promises to its client."""

from concurrent.futures import Future

import httpx2


def unavailable(response: httpx2.Response) -> bool:
    """Tell whether the answer is 503, and invites a retry wherever one is safe."""
    safe = response.status_code != 503 or not (
        is_outcome_unknown(response) and response.request.method in ("POST", "PATCH")
    )
    return response.status_code == 503 and (response.headers.get("retry-after") == "1") == safe


def cut_short(sent: Future[httpx2.Response]) -> bool:
    """Tell whether a request got no answer, or the one that leaves its outcome open."""
    if isinstance(sent.exception(), httpx2.TransportError):
        return True
    return unavailable(sent.result())


def is_outcome_unknown(response: httpx2.Response) -> bool:
    """Tell whether a change may be stored or not, so that a repetition may be the second."""
    found: bool = response.json()["type"] == "/problems/outcome-unknown"
    return found
