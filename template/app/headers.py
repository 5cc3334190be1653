"""Default headers of every response: what caches and browsers may do with it."""

from collections.abc import Iterable

from starlette.types import Scope

DEFAULTS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
# Swagger UI's pages contain scripts and styles, and may ask another host for a token.
PAGES = ("/docs", "/docs/oauth2-redirect")
OF_PAGES = DEFAULTS | {
    b"content-security-policy": (
        b"default-src 'self' 'unsafe-inline' data:; connect-src *; frame-ancestors 'none'"
    )
}


def complete(headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    """Add the default of each header that is missing."""
    given = [*headers]
    names = {name for name, _ in given}
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    defaults = OF_PAGES if path in PAGES else DEFAULTS
    return [*given, *[header for header in defaults.items() if header[0] not in names]]
