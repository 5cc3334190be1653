"""Try the template or run its tests, with nothing but Python 3.11 and git.

    python3 dev.py new               a service on SQLite, served on http://127.0.0.1:8000
    python3 dev.py new postgresql    the same on a PostgreSQL of its own
    python3 dev.py test              all tests; further words are pytest's
    python3 dev.py test --fast       what gives an answer in a minute
    python3 dev.py docs              the documentation, served on http://127.0.0.1:8000
    python3 dev.py benchmark         what a request costs, beside the bare driver and peers
    python3 dev.py soak              random faults under load, 15 minutes for each database

uv does the work: yours, or one that is installed into .uv/ here.
"""

import signal
import sys

# A Ctrl-C among the imports ends it without a traceback. Older Pythons get as far as the next line,
# so this file is written in the syntax of Python 3.6.
signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}.")

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
COPIER = "copier>=9.19"
OLDEST_UV = (0, 5)
INSTALL_UV = "or install uv by https://docs.astral.sh/uv/getting-started/installation/"
OFFLINE = "without a network, or behind a proxy that HTTPS_PROXY does not name, nothing is fetched"
# In a path, Poe replaces what follows a $, uv's search path ends at a colon, PostgreSQL's initdb
# passes the others to a shell, and no line or file of text holds the rest.
BREAKING = re.compile('[$:"`\\\\\x00-\x1f\x7f\ud800-\udfff]')
MAX_PATH = 480  # bytes of a folder's; SQLite opens no file of more than 512


def find_uv() -> str:
    found = shutil.which("uv")
    if found and version_of(found) >= OLDEST_UV:
        return found
    folder = HERE / ".uv"
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    if not shutil.which("uv", path=str(scripts)):
        if found:
            print(found, "is older than", ".".join(map(str, OLDEST_UV)))
        print("Installing uv into", folder, flush=True)
        failed = f"uv could not be installed into {folder}: {OFFLINE}; {INSTALL_UV}"
        made = folder / str(os.getpid())  # of its own, where two do it at once
        try:
            folder.mkdir(exist_ok=True)
            run([sys.executable, "-m", "venv", str(made)], HERE, failed)
            install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
            run([str(made / scripts.name / "python"), *install], HERE, failed)
            if not shutil.which("uv", path=str(scripts)):
                shutil.rmtree(scripts, ignore_errors=True)
                with suppress(OSError):  # the other one was faster
                    (made / scripts.name).rename(scripts)
        except OSError as error:
            sys.exit(f"{failed} ({error.strerror})")
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return str(shutil.which("uv", path=str(scripts)))


def version_of(uv: str) -> tuple[int, ...]:
    try:
        said = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(map(int, re.findall(r"\d+", said)[:2]))


def say_where_uv_is(uv: str) -> None:
    if shutil.which("uv") != uv:
        folder = os.path.dirname(uv)
        line = f'export PATH="{folder}:$PATH"'
        if os.name == "nt":
            line = f'$env:Path = "{folder};$env:Path"'
        print("To have uv in another terminal, type there:", line, sep="\n    ", flush=True)


def run(command: list[str], folder: Path, failed: str) -> None:
    """Wait for a command; it says what is wrong, and `failed` what to do about it."""
    # Ctrl-C is this process's alone: at some moments tools would answer with a traceback.
    with tempfile.TemporaryDirectory() as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        hold_interrupt(True)  # until it is known what to end
        try:
            process = subprocess.Popen(command, cwd=folder, env=environment, process_group=0)
        except OSError as error:
            sys.exit(f"{failed} ({error.strerror}: {error.filename})")
        try:
            hold_interrupt(False)
            process.wait()
        except KeyboardInterrupt:
            end_group(process)
            raise
    if process.returncode != 0:
        sys.exit(failed)


def hold_interrupt(held: bool) -> None:
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, [signal.SIGINT])


def end_group(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with suppress(ProcessLookupError):  # it has ended by itself, just now
            os.killpg(process.pid, signal.SIGTERM)
    process.terminate()
    process.wait()


def replace_this_process(*command: str, folder: Path) -> NoReturn:
    """Run `command` in `folder` in place of this process, so that signals reach it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(folder)
    if os.name == "posix":
        os.execv(command[0], command)
    sys.exit(subprocess.call(command))


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[None]:
    """Make a folder, and remove it again, with its new parents, if it can't be completed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing[-1:] or folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        raise


def check_folder(folder: Path) -> None:
    another = "name another with --folder"
    breaking = BREAKING.search(str(folder))
    if breaking and os.name == "posix":
        sys.exit(f"{str(folder)!a}: tools fail in a path with {breaking[0]!a}; {another}")
    if len(os.fsencode(folder)) > MAX_PATH:
        sys.exit(f"the path of the folder is too long for SQLite; {another}")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        sys.exit(f"{nearest} is no folder; {another}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        sys.exit(f"{nearest} can't be written to; {another}")
    if nearest == folder and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: remove it, or {another}")


def new(database: str, folder: Path, port: int) -> NoReturn:
    folder = folder.resolve()
    check_folder(folder)
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        sys.exit(f"port {port}: {error.strerror}; name another with --port")
    if not shutil.which("git"):
        sys.exit("git is needed, and is not on the path")
    inherited = sorted(name for name in os.environ if name.upper().startswith("DATABASE_"))
    if inherited:
        print("Not used here, as the service gets a database of its own:", *inherited)
        print("Its own commands do use them, unless you type first: unset", *inherited)
    for name in inherited:
        del os.environ[name]
    uv = find_uv()
    copier = [uv, "tool", "run", "--from", COPIER, "copier", "copy", "--quiet", "--defaults"]
    copier += ["--data", f"database={database}", "--vcs-ref", "HEAD", str(HERE), str(folder)]
    with all_or_nothing(folder):
        run(copier, HERE, f"No service was made: see above; {OFFLINE}")
        packages = "Its packages could not be installed, so the service was removed again"
        run([uv, "run", "python", "-c", ""], folder, f"{packages}: see above; {OFFLINE}")
    print("The service is in", folder)
    answers = (folder / ".copier-answers.yml").read_text("utf-8")
    if not re.search(r"(?m)^_commit: *['\"]?v?\d+\.\d", answers):
        print("No release can update it: this template is a ZIP, or a clone without tags, and so")
        print("has no versions. Generate a service that you keep from a clone with its tags.")
    print("Its commands are typed there:", f"cd {shlex.quote(str(folder))}", sep="\n    ")
    say_where_uv_is(uv)
    sys.stdout.flush()
    replace_this_process(uv, "run", "poe", "dev", "--port", str(port), folder=folder)


def port_number(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is none from 1 to 65535")
    return int(text)


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


def main() -> None:
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
    create.add_argument("--port", type=port_number, default=8000)
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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"{error.filename or 'dev.py'}: {error.strerror}")
