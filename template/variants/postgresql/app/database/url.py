"""Parsing of PostgreSQL URLs, and the only builder of the driver URL."""

import os
import re
import ssl
from typing import Any
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

EXAMPLE = "postgresql://user:password@host:5432/name"
DRIVER = "postgresql+asyncpg"

# Parameters that asyncpg accepts as text; any other would fail at the first connection.
URL_PARAMETERS = {"host", "port", "ssl", "passfile", "target_session_attrs", "krbsrvname"}
CHOICES = {
    "ssl": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": (
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    ),
}
# The variable of each TLS file, the file's default name in ~/.postgresql, and what it contains.
TLS_FILES = {
    "PGSSLROOTCERT": ("root.crt", "certificate"),
    "PGSSLCRL": ("root.crl", "revocation list"),
    "PGSSLCERT": ("postgresql.crt", "certificate"),
    "PGSSLKEY": ("postgresql.key", "key without a password that fits PGSSLCERT"),
}
READING = ("standby", "prefer-standby", "read-only")  # those that ask for no writes
# libpq's form of several hosts, which SQLAlchemy accepts as parameters only.
SEVERAL_HOSTS = re.compile(r"([^:/]+://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)(/?[^?#]*)\??(.*)")
# The folder of a Unix socket, an IPv6 address with or without brackets, or a name.
HOST = re.compile(r"(/.*|\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:/@\[\]\s]+)(?::([0-9]+))?|([0-9A-Fa-f:.]+)")


def parse(text: str) -> URL:
    """Return asyncpg's URL for a provider's (`postgres://`, libpq's parameters).

    Raises:
        ValueError: with a reason that shows nothing of `text` but its scheme and parameters.
    """
    if re.search(r"[?&]\w+=(&|$)", text):  # SQLAlchemy would drop it
        raise ValueError("has a parameter without a value; remove it")
    if several := SEVERAL_HOSTS.fullmatch(text):
        start, hosts, path, query = several.groups()
        text = f"{start}{path or '/'}?{'&'.join(filter(None, (query, f'host={hosts}')))}"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"not a URL; write {EXAMPLE}") from None
    if url.drivername not in {"postgres", "postgresql", DRIVER}:
        raise ValueError(f"{url.drivername} is not asyncpg; write {EXAMPLE}")
    if "@" in (url.host or "") + str(url.query.get("host")):
        raise ValueError("has two @; write the one in the password as %40")
    query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
    if len(query) < len(url.query):
        raise ValueError("has both ssl and sslmode; remove one")
    if unknown := query.keys() - URL_PARAMETERS:
        hint = " and name the file by PGSSLROOTCERT" if "sslrootcert" in unknown else ""
        names = ", ".join(sorted(unknown))
        raise ValueError(f"asyncpg knows no parameter {names}; remove it{hint}")
    for name, choices in CHOICES.items():
        if name in query and query[name] not in choices:
            shown = "sslmode" if name == "ssl" and "ssl" not in url.query else name
            raise ValueError(f"{shown} must be one of {', '.join(choices)}")
    hosts, ports = (query.pop(name, None) for name in ("host", "port"))
    url = url.set(drivername=DRIVER, query=query)
    host = join(hosts) or unquote(url.host or "")
    return locate(url, host, join(ports) or str(url.port or "")) if host else url


def join(parameter: str | tuple[str, ...] | None) -> str:
    return ",".join(parameter) if isinstance(parameter, tuple) else parameter or ""


def locate(url: URL, hosts: str, ports: str) -> URL:
    """Return `url` with these hosts, separated by commas; each has its port, or all have one.

    Raises:
        ValueError: one is no host, or the numbers of hosts and ports differ.
    """
    names = hosts.split(",")
    numbers = ports.split(",")
    numbers = numbers * len(names) if len(numbers) == 1 else numbers
    if len(names) != len(numbers):
        raise ValueError("must name one port, or one for each host")
    pairs = [parse_host(name, number) for name, number in zip(names, numbers, strict=True)]
    [(host, port), *others] = pairs
    if not others and not host.startswith("/"):
        return url.set(host=host, port=port)
    query: dict[str, Any] = {"host": ",".join(host for host, _ in pairs)}
    if others or port is not None:
        query["port"] = ",".join(str(port or 5432) for _, port in pairs)
    query = {**url.query, **query}  # which `set` would keep beside a host
    return URL.create(DRIVER, url.username, url.password, database=url.database, query=query)


def parse_host(text: str, port: str) -> tuple[str, int | None]:
    found = HOST.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        host = (found[1] or found[3]).strip("[]")
        host.encode("idna" if ":" not in host and not host.startswith("/") else "utf-8")
        number = int(found[2] or port) if found[2] or port else None
        if number is not None and not 1 <= number <= 65535:
            raise ValueError
    except ValueError:  # or UnicodeError, for a name such as a..b
        raise ValueError(f"names no host and port; write {EXAMPLE}") from None
    return host, number


def check_tls(url: URL) -> URL:
    """Return `url`, or raise `ValueError` with the variable of an unusable TLS file."""
    host = str(url.query.get("host") or url.host or "/")
    default = "disable" if host.startswith("/") else "prefer"
    mode = url.query.get("ssl") or os.environ.get("PGSSLMODE") or default
    if mode not in CHOICES["ssl"]:
        raise ValueError(f"PGSSLMODE must be one of {', '.join(CHOICES['ssl'])}")
    files = {}
    unread = {"disable": 4, "allow": 2, "prefer": 2}.get(str(mode), 0)
    for name in list(TLS_FILES)[unread:]:
        given = os.environ.get(name)
        file = given or os.path.expanduser(f"~/.postgresql/{TLS_FILES[name][0]}")
        if given or os.path.exists(file) or name == "PGSSLROOTCERT" and "verify" in mode:
            files[name] = file
    if "PGSSLCERT" in files:
        files.setdefault("PGSSLKEY", files["PGSSLCERT"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, file in files.items():
        try:
            if name != "PGSSLKEY":
                context.load_verify_locations(file)
            elif "PGSSLCERT" in files:
                context.load_cert_chain(files["PGSSLCERT"], file, lambda: "")
        except ssl.SSLError:
            raise ValueError(f"{name} ({file}) is no {TLS_FILES[name][1]}") from None
        except OSError as error:
            raise ValueError(f"{name} ({file}) cannot be read: {error.strerror}") from None
    return url
