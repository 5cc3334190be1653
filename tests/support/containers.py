"""Images and containers without Docker, of what Docker makes them: overlays and namespaces.

This machine's own files stand for the base image, under layers that take what a Dockerfile's steps
write; uv and Python are this machine's too, and so is the network.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from docker.utils.build import exclude_paths

from tests.support.processes import (
    START_TIMEOUT,
    environment,
    free_port,
    open_client,
    wait_until_served,
)
from tests.support.services import Server

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # a base image's
PYTHON = Path(sys.executable).resolve()
HOLD = """
set -e
mount -t tmpfs tmpfs "$0"
cd "$0"
mkdir root context try try.work
mount -t overlay overlay -o lowerdir=/,upperdir=try,workdir=try.work root
umount root
echo held
exec cat
"""


class NoNamespacesError(Exception):
    """The kernel gives this user no namespaces, with what it says."""


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return each instruction of a Dockerfile with what it is given."""
    text = re.sub(r"^#.*\n|\\\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line]


class Image:
    """What a Dockerfile builds.

    Its layers are in a mount of a namespace that nobody else sees, and that ends with `close`.

    Raises:
        NoNamespacesError: if there can be none.
    """

    def __init__(self, context: Path, folder: Path) -> None:
        self.folder = folder
        self.context = context
        self.stage = ""
        self.env: dict[str, str] = {}
        self.workdir = "/"
        self.user = "0"
        self.port = ""
        self.command: list[str] = []
        self.healthcheck: list[str] = []
        if shutil.which("unshare") is None:
            raise NoNamespacesError("there is no unshare")
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", HOLD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != "held\n":
            raise NoNamespacesError(self.holder.communicate()[1])

    def close(self) -> None:
        self.holder.communicate()

    # Building -------------------------------------------------------------------------------------

    def build(self) -> None:
        """Take the steps, one after another."""
        ignored = (self.context / ".dockerignore").read_text().splitlines()
        sent = exclude_paths(str(self.context), ignored)
        files = [name for name in sorted(sent) if (self.context / name).is_file()]
        target = f"{self.folder}/context"
        self.shell(f"cd {self.context} && cp --parents {shlex.join(files)} {target}", mounted=False)

        for instruction, given in instructions(self.context / "Dockerfile"):
            match instruction:
                case "FROM":
                    self.begin(*given.split(" AS "))
                case "WORKDIR":
                    self.workdir = given
                    self.shell(f"mkdir -p root{given}")
                case "COPY":
                    self.copy(shlex.split(given))
                case "RUN":
                    self.step(given)
                case "ENV":
                    words = shlex.split(given.replace("$PATH", PATH))
                    self.env |= dict(word.split("=", 1) for word in words)
                case "USER":
                    self.user = given
                case "EXPOSE":
                    self.port = given
                case "HEALTHCHECK":
                    self.healthcheck = json.loads(given.partition("CMD ")[2])
                case "CMD":
                    self.command = json.loads(given)
                case _:
                    assert instruction == "ARG", f"{instruction} is not known here"

    def begin(self, base: str, stage: str = "image") -> None:
        self.stage = stage
        self.env = {"PATH": PATH}
        self.workdir = "/"
        self.shell(f"mkdir {stage} {stage}.work", mounted=False)
        if "/uv:" in base:
            self.shell(f"cp {shutil.which('uv')} root/uv")
        # Python may be where only its owner goes.
        self.shell(f"chmod o+x {' '.join(f'root{folder}' for folder in PYTHON.parents)}")

    def copy(self, words: list[str]) -> None:
        layer = words.pop(0).removeprefix("--from=") if words[0].startswith("--") else "context"
        *sources, target = words
        target = f"root{target}" if target.startswith("/") else f"root{self.workdir}/{target}"
        for source in sources:
            path = f"{layer}/{source.lstrip('/')}"
            # Of a folder the content, as Docker does.
            self.shell(
                f"if test -d {path}; then mkdir -p {target}; cp -a {path}/. {target}\n"
                f"else cp -a {path} {target}; fi"
            )

    def step(self, given: str) -> None:
        mounts = {}
        if cache := re.match(r"--mount=type=cache,target=(\S+) +", given):
            given = given[cache.end() :]
            own = subprocess.check_output(["uv", "cache", "dir"], text=True).strip()
            mounts[own] = cache[1]
            self.shell(f"mkdir -p {own} root{cache[1]}")
        variables = environment(**self.env, UV_PYTHON=str(PYTHON))
        inside = ["chroot", "root", "env", f"--chdir={self.workdir}", "sh", "-c", given]
        self.shell(shlex.join(inside), mounts, variables)

    def shell(
        self,
        script: str,
        mounts: dict[str, str] | None = None,
        variables: dict[str, str] | None = None,
        *,
        mounted: bool = True,
    ) -> str:
        """Run a script beside the layers, with the stage that is being built on `root`."""
        overlay = f"lowerdir=/,upperdir={self.stage},workdir={self.stage}.work"
        done = subprocess.run(
            self.enter(overlay if mounted else "", script, mounts or {}),
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=START_TIMEOUT,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def enter(self, overlay: str, script: str, mounts: dict[str, str]) -> list[str]:
        """Return the command that runs a script as process 1 of namespaces of its own."""
        lines = ["set -e", f"cd {self.folder}"]
        if overlay:
            lines += [
                f"mount -t overlay overlay -o {overlay} root",
                "mount --rbind /dev root/dev",
                "mount -t proc proc root/proc",
            ]
        lines += [f"mount --bind {source} root{target}" for source, target in mounts.items()]
        return [
            *("nsenter", "--mount", "--target", str(self.holder.pid)),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", "\n".join([*lines, script])),
        ]

    # Running --------------------------------------------------------------------------------------

    def volume(self, folder: Path, target: str) -> dict[str, str]:
        """Make a volume of a folder, and return its mount; it begins as the image has it."""
        self.shell(f"rmdir {folder} && cp -a image{target} {folder}", mounted=False)
        return {str(folder): target}

    def container(
        self, command: list[str], mounts: dict[str, str], variables: dict[str, str]
    ) -> list[str]:
        """Return the command that runs another as process 1 of a container.

        It can write nowhere but to the mounts, and it has no capabilities.
        """
        script = [
            *("exec", "chroot", "root", "setpriv", "--no-new-privs", "--bounding-set=-all"),
            *("--inh-caps=-all", "--clear-groups", f"--reuid={self.user}", f"--regid={self.user}"),
            *("env", "--ignore-environment", f"--chdir={self.workdir}"),
            *(f"{name}={value}" for name, value in {**self.env, **variables}.items()),
            *command,
        ]
        return self.enter("lowerdir=image:/", shlex.join(script), mounts)

    def at(self, port: str, command: list[str]) -> list[str]:
        """Return a command of the Dockerfile for another port than its own."""
        return [word.replace(self.port, port) for word in command]

    def run(
        self, command: list[str], mounts: dict[str, str], variables: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.container(command, mounts, variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=START_TIMEOUT,
        )

    @contextmanager
    def serve(self, mounts: dict[str, str], variables: dict[str, str]) -> Iterator[Server]:
        """Start a container as the image says, but for the port, and wait for its first answer."""
        port = str(free_port())
        log_file = self.folder.with_name(f"{self.folder.name}-{port}.log")
        command = self.at(port, self.command)
        with (
            log_file.open("wb") as log,
            open_client(f"http://127.0.0.1:{port}") as client,
            subprocess.Popen(
                self.container(command, mounts, variables), stdout=log, stderr=log
            ) as process,
        ):
            try:
                wait_until_served(client, process, log_file)
                yield Server(process, client, log_file)
            finally:
                process.kill()


def process_1(server: Server) -> psutil.Process:
    [process] = psutil.Process(server.process.pid).children()
    return process
