"""What it takes to run a process and to wait for it."""

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import httpx2
import psutil

INSTALL_TIMEOUT = 300.0  # seconds, on a machine that has to fetch all packages first
START_TIMEOUT = 90.0  # seconds, on a busy machine that installs packages first

# The developer's own environment must not reach what is tested.
FOREIGN = (
    "CI",  # a service is stricter there
    "DATABASE_",
    "TEST_DATABASE_URL",
    "UV_PROJECT",
    "VIRTUAL_ENV",
    "PYTHON",  # such as UNBUFFERED, by which output would come in another order
    "MYPY_",
    "PYTEST_",
)


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    folder = services_temporary_folder()
    own = {"PYTEST_DEBUG_TEMPROOT": folder, "MYPY_CACHE_DIR": f"{folder}/mypy"}
    # A service's own tests in one process, where these already take every core: a worker imports
    # everything once more.
    own["PYTEST_XDIST_AUTO_NUM_WORKERS"] = "0"
    return kept | own | changes


@cache
def services_temporary_folder() -> str:
    """Return where the services' own tests put their files, and mypy what it remembers.

    mypy looks at the content of files, so services have most of what it remembers in common.
    Not where these tests put theirs: each pytest takes its root away from other users, and a
    PostgreSQL that root starts runs as one.
    """
    folder = tempfile.mkdtemp(prefix="services-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def once(file: Path, make: Callable[[], str]) -> str:
    """Return what `make` returns to the first worker that comes here; the others wait for it."""
    failed = file.with_suffix(".failed")
    try:
        file.with_suffix(".begun").mkdir()
    except FileExistsError:
        wait_for(lambda: file.exists() or failed.exists(), INSTALL_TIMEOUT)
        assert not failed.exists(), "another worker has failed"
        return file.read_text()
    try:
        made = make()
    except BaseException:
        failed.touch()
        raise
    part = file.with_suffix(".part")
    part.write_text(made)
    part.rename(file)
    return made


def open_client(url: str, timeout: float = START_TIMEOUT) -> httpx2.Client:
    """Return a client of a server on this host, without certificates: reading them takes 20 ms."""
    return httpx2.Client(base_url=url, timeout=timeout, verify=False)


def wait_until_served(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        try:
            client.get("/health/live")
        except httpx2.TransportError:
            time.sleep(0.02)
        else:
            return
    process.kill()
    raise AssertionError(f"the service did not start:\n{log.read_text(encoding='utf-8')}")


def interrupt_import(folder: Path, imported: str, *words: str, **variables: str) -> str:
    """Run Python with these words, press Ctrl-C when it has imported a module, and return the rest.

    That is of what it says on stderr, where it also names what it imports.
    """
    with subprocess.Popen(
        [".venv/bin/python", "-X", "importtime", *words],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if re.search(rf"\| +{re.escape(imported)}$", line):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode != 0
    return rest


def wait_for(happened: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def processes_in(folder: Path) -> list[str]:
    """Return what runs in a folder or was started with its name."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


def wait_until_nothing_runs(folder: Path) -> None:
    end = time.monotonic() + 10
    while running := processes_in(folder):
        assert time.monotonic() < end, running
        time.sleep(0.1)
