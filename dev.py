"""Try the template or run its tests, with nothing but Python 3.11 and git.

    python3 dev.py new               a service on SQLite, served on http://127.0.0.1:8000
    python3 dev.py new postgresql    the same on a PostgreSQL of its own
    python3 dev.py test              all tests; further words are pytest's
    python3 dev.py test --fast       what gives an answer in a minute
    python3 dev.py docs              the documentation, served on http://127.0.0.1:8000
    python3 dev.py benchmark         what a request costs, beside the bare driver
    python3 dev.py soak              random faults under load, 15 minutes for each database

uv does the work: yours, or one that is installed into .uv/ here.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import venv
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
COPIER = "copier>=9.19"


def find_uv() -> str:
    if found := shutil.which("uv"):
        return found
    folder = HERE / ".uv"
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    if not shutil.which("uv", path=str(scripts)):
        print("Installing uv into", folder, flush=True)
        venv.create(folder, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
        subprocess.run([scripts / "python", *install], check=True)
    return str(shutil.which("uv", path=str(scripts)))


def replace_this_process(*command: str, folder: Path) -> NoReturn:
    """Run `command` in `folder` in place of this process, so that signals reach it."""
    os.chdir(folder)
    if os.name == "posix":
        os.execv(command[0], command)
    sys.exit(subprocess.call(command))


def new(database: str, folder: Path, port: int) -> NoReturn:
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: remove it, or name another with --folder")
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        sys.exit(f"port {port}: {error.strerror}; name another with --port")
    uv = find_uv()
    copier = [uv, "tool", "run", "--from", COPIER, "copier"]
    answers = ["--defaults", "--data", f"database={database}"]
    source = ["--vcs-ref", "HEAD", str(HERE), str(folder)]
    subprocess.run([*copier, "copy", "--quiet", *answers, *source], check=True)
    print("The service is in", folder, flush=True)
    replace_this_process(uv, "run", "poe", "dev", "--port", str(port), folder=folder)


def test(options: list[str]) -> NoReturn:
    replace_this_process(find_uv(), "run", "pytest", *options, folder=HERE)


def docs(options: list[str]) -> NoReturn:
    serve = [find_uv(), "run", "--only-group", "docs", "zensical", "serve"]
    site = ["--config-file", "docs/zensical.toml", "--dev-addr", "127.0.0.1:8000"]
    replace_this_process(*serve, *site, *options, folder=HERE)


def benchmark(options: list[str]) -> NoReturn:
    run = [find_uv(), "run", "--group", "benchmark", "python", "-m", "tests.benchmark"]
    replace_this_process(*run, *options, folder=HERE)


def soak(options: list[str]) -> NoReturn:
    replace_this_process(find_uv(), "run", "python", "-m", "tests.soak", *options, folder=HERE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("new", help="generate a service and serve it")
    create.add_argument("database", nargs="?", default="sqlite", choices=["sqlite", "postgresql"])
    create.add_argument(
        "--folder",
        type=Path,
        default=HERE.parent / "my-service",
        help="where to; by default my-service, beside this clone",
    )
    create.add_argument("--port", type=int, default=8000)
    commands.add_parser("test", help="run all tests", add_help=False)
    commands.add_parser("docs", help="serve the documentation", add_help=False)
    commands.add_parser("benchmark", help="measure what a request costs", add_help=False)
    commands.add_parser("soak", help="random faults under load", add_help=False)
    arguments, further = parser.parse_known_args()
    os.environ.pop("VIRTUAL_ENV", None)
    os.environ["UV_PYTHON"] = sys.executable  # and not one that uv would download
    os.environ.setdefault("UV_SYSTEM_CERTS", "true")  # a company's own, where it has some
    if arguments.command == "test":
        test(further)
    if arguments.command == "docs":
        docs(further)
    if arguments.command == "benchmark":
        benchmark(further)
    if arguments.command == "soak":
        soak(further)
    if further:
        parser.error(f"unknown: {' '.join(further)}")
    new(arguments.database, arguments.folder, arguments.port)
