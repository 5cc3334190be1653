"""The address that `poe dev` listens on, checked before anything is started."""

import socket
import sys

import click
import uvicorn


def find_url(arguments: list[str]) -> str | None:
    """Return the URL that is served, if it is known yet, or exit if uvicorn could not listen there."""
    app = {"app": ""}
    try:
        options = uvicorn.main.make_context("poe dev", list(arguments), default_map=app).params
    except click.exceptions.Exit as answered:  # --help
        sys.exit(answered.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    host, port = options["host"], options["port"]
    if options["uds"] or options["fd"] is not None:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OverflowError:
        sys.exit(f"port {port}: not between 0 and 65535")
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        sys.exit(f"{host}, port {port}: {reason}; name another with --port or --host")
    if port == 0 or not host:  # uvicorn says which it got
        return None
    scheme = "https" if options["ssl_certfile"] else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
