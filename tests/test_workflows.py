"""What GitHub runs, for the services and the template: linted, and its steps run here."""

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from tests.support.databases import DATABASES
from tests.support.pages import Typist, blocks, page_text, shows
from tests.support.processes import environment, once
from tests.support.repository import REPOSITORY, commit, git, replace
from tests.support.services import Service, render

CHANGELOG = """\
# Changelog

## Unreleased

- Not yet.

## [9002.0.0] - 2026-12-02

- Second.

## [9001.0.0] - 2026-12-01

- First.

## [9000.0.0] - 2026-11-01

- Before.
"""
ADVISORY = {"id": "GHSA-0000-0000-0000", "modified": "2026-01-01T00:00:00Z"}
GH = """\
#!/bin/sh
test -n "$GH_TOKEN" || exit 4
echo "$@" >> "$CALLS"
case "$1 $2" in
    "pr list") echo "$PROPOSED" ;;
    "pr create")
        case "$*" in *--draft) test -z "$NO_DRAFTS" || exit 1 ;; esac
        sed -n 's/^/body: /p' "$8" >> "$CALLS"
        ;;
esac
"""


# Lints --------------------------------------------------------------------------------------------


@pytest.fixture(params=["template", *DATABASES])
def linted(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Path:
    """The repository, or a fresh service."""
    if request.param == "template":
        return template
    return render(template, tmp_path / "service", database=request.param)


def lint(*command: str | Path) -> str:
    """Run a linter, and return what it finds. It asks nobody, so it needs no network."""
    done = subprocess.run(
        command,
        env=environment(HTTPS_PROXY="http://127.0.0.1:1", HTTP_PROXY="http://127.0.0.1:1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode else ""


def check_schema(schema: str, *files: Path) -> str:
    assert files
    return lint("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


def typed(workflow: Path) -> dict[str, list[str]]:
    """Return what each job of GitHub's types."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return {
        name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()
    }


def test_no_workflow_is_open_to_attack(linted: Path) -> None:
    pedantic = ("zizmor", "--offline", "--quiet", "--persona=pedantic")
    assert lint(*pedantic, linted / ".github") == ""


# What a job does that holds a token which may write: nothing that runs a file of the repository, of
# a release or of a package.
HARMLESS_ACTIONS = {"actions/checkout", "actions/deploy-pages", "actions/download-artifact"}
READS = "TEMPLATE_READ_TOKEN"  # the only secret of a job that runs what it has fetched
HARMLESS_PROGRAMS = {"cat", "find", "gh", "git", "test"}


def test_a_job_that_may_write_runs_nothing_but_git_and_gh(linted: Path) -> None:
    for workflow in (linted / ".github/workflows").glob("*.yml"):
        for name, job in yaml.safe_load(workflow.read_text())["jobs"].items():
            for step in job["steps"]:
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False, name
            if not {"write"} & {*job["permissions"].values()}:
                assert "secrets." not in str(job).replace(f"secrets.{READS}", ""), name
                continue
            assert READS not in str(job), name
            actions = {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step}
            assert actions <= HARMLESS_ACTIONS, name
            script = "\n".join(step.get("run", "") for step in job["steps"])
            script = re.sub(r"<< END\n.*?\nEND\n", "\n", script, flags=re.DOTALL)
            words = re.findall(r"(?:^|\|\|)(?:if !|if|\s)*(\w+)|\$\((\w+)", script, re.MULTILINE)
            programs = {first or second for first, second in words}
            assert programs - {"else", "fi"} <= HARMLESS_PROGRAMS, name


def test_every_workflow_has_githubs_form(linted: Path) -> None:
    workflows = sorted((linted / ".github/workflows").glob("*.yml"))

    assert check_schema("github-workflows", *workflows) == ""
    assert check_schema("dependabot", linted / ".github/dependabot.yml") == ""


def test_the_note_of_a_workflow_that_has_moved_has_githubs_form(tmp_path: Path) -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    [note] = [block.text for block in blocks(text) if block.language == "yaml"]
    (tmp_path / "moved.yml").write_text(note)
    (tmp_path / "compose.yaml").write_text("# Moved.\nservices: {}\n")

    assert check_schema("github-workflows", tmp_path / "moved.yml") == ""
    assert check_schema("compose-spec", tmp_path / "compose.yaml") == ""


def test_the_compose_file_and_the_dockerfile_are_in_order(linted: Path) -> None:
    if (linted / "copier.yml").exists():
        forms = sorted((linted / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
        assert check_schema("github-issue-forms", *forms) == ""
        return
    assert check_schema("compose-spec", linted / "compose.yaml") == ""
    if sys.platform == "win32":
        pytest.skip("hadolint has no wheel for Windows")
    assert lint("hadolint", "--failure-threshold", "info", linted / "Dockerfile") == ""


def test_every_shell_script_is_in_order(linted: Path, tmp_path: Path) -> None:
    scripts = [*linted.glob(".ci/*")]
    for workflow in (linted / ".github/workflows").glob("*.yml"):
        for job, lines in typed(workflow).items():
            script = tmp_path / f"{workflow.stem}-{job}.sh"
            script.write_text("\n".join(["set -eo pipefail", *lines]))  # as GitHub runs them
            scripts.append(script)

    assert scripts
    assert lint("shellcheck", "--shell", "bash", *scripts) == ""


def test_every_text_is_in_order(linted: Path, template: Path) -> None:
    rules = template / "pyproject.toml"

    assert lint("rumdl", "check", "--no-cache", "--config", rules, linted) == ""
    assert lint("typos", "--config", rules, linted) == ""
    relaxed = "{extends: relaxed, rules: {line-length: disable}}"
    assert lint("yamllint", "--strict", "--config-data", relaxed, linted) == ""


def test_each_action_is_pinned_to_the_same_commit_everywhere(template: Path) -> None:
    pins: dict[str, set[str]] = {}
    for file in template.glob("**/.github/workflows/*.yml"):
        for action, pin in re.findall(r"uses: (\S+)@(.*)", file.read_text()):
            pins.setdefault(action, set()).add(pin)

    assert pins
    for action, found in pins.items():
        [pin] = found
        assert re.fullmatch(r"[0-9a-f]{40} # v[\d.]+", pin), action


# The steps ----------------------------------------------------------------------------------------


def without_identity(**variables: str) -> dict[str, str]:
    """Return an environment in which a job says itself who commits."""
    identity = ("GIT_AUTHOR_", "GIT_COMMITTER_")
    return {
        name: value
        for name, value in environment(**variables).items()
        if not name.startswith(identity)
    }


class Runner:
    """Takes the steps of a workflow's jobs, each job in a clone of its own, as GitHub does.

    Of actions only those that carry an artifact from one job to another do something. `gh` is not
    the real one: it notes how it was called. The group `ci` is installed into `tools`, for all jobs
    that are given the same.
    """

    def __init__(
        self, workflow: Path, origin: Path, folder: Path, tools: Path | None = None
    ) -> None:
        read = yaml.safe_load(workflow.read_text())
        self.jobs: dict[str, Any] = read["jobs"]
        self.environment: dict[str, str] = read.get("env", {})
        self.origin = origin
        self.folder = folder
        self.tools = tools or folder / "tools"
        self.calls = folder / "calls"
        self.calls.touch()
        self.summary = folder / "summary"
        (folder / "bin").mkdir()
        (folder / "bin/gh").write_text(GH)
        (folder / "bin/gh").chmod(0o755)
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.variables = {"PATH": path, "CALLS": str(self.calls), "PROPOSED": "0"}
        self.variables["GITHUB_RUN_ID"] = "1"
        self.context = {
            "github.server_url": "https://github.com",
            "github.token": "token",
            "github.workflow": "Update",
        }

    def fill(self, text: str) -> str:
        """Put in the values of expressions; an alternative is the first that there is."""
        return re.sub(
            r"\$\{\{ (.*?) \}\}",
            lambda match: next(filter(None, map(self.context.get, match[1].split(" || "))), ""),
            text,
        )

    def carry(self, step: dict[str, Any]) -> None:
        """Do what `actions/upload-artifact` and `actions/download-artifact` do."""
        action = step["uses"].partition("@")[0]
        if action.endswith("-artifact"):
            place = Path(self.fill(step["with"]["path"]))
            artifact = self.folder / f"artifact-{step['with']['name']}"
            ends = (place, artifact) if "upload" in action else (artifact, place)
            shutil.copytree(*ends, symlinks=True)

    def run(self, name: str, before: Callable[[dict[str, Any], Path], None] | None = None) -> str:
        """Run a job, and return what it says; `before` is called ahead of each of its steps.

        Raises:
            AssertionError: if a step fails, with what it says.
        """
        job = self.jobs[name]
        clone = self.folder / name
        git(self.folder, "clone", "--quiet", f"file://{self.origin}", str(clone))
        temporary, output = self.folder / f"{name}-temp", self.folder / f"{name}-output"
        temporary.mkdir()
        self.context["runner.temp"] = str(temporary)
        said = ""
        for step in job["steps"]:
            if before is not None:
                before(step, clone)
            if "run" not in step:
                self.carry(step)
                continue
            values = {**self.environment, **job.get("env", {}), **step.get("env", {})}
            variables = {key: self.fill(str(value)) for key, value in values.items()}
            if "--only-group ci" in step["run"]:
                variables["UV_PROJECT_ENVIRONMENT"] = str(self.tools)
            output.write_text("")
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", self.fill(step["run"])],
                cwd=clone,
                env=without_identity(
                    **self.variables,
                    **variables,
                    RUNNER_TEMP=str(temporary),
                    GITHUB_OUTPUT=str(output),
                    GITHUB_STEP_SUMMARY=str(self.summary),
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            said += done.stdout
            assert done.returncode == 0, said
            for line in output.read_text().splitlines():
                key, _, value = line.partition("=")
                self.context[f"steps.{step['id']}.outputs.{key}"] = value
        for key, value in job.get("outputs", {}).items():
            self.context[f"needs.{name}.outputs.{key}"] = self.fill(value)
        return said


@pytest.fixture
def released(template: Path, tmp_path: Path) -> Path:
    """The template, with two releases after the working tree's."""
    folder = tmp_path / "template.git"
    git(tmp_path, "clone", "--quiet", str(template), str(folder))
    for version in ("9001.0.0", "9002.0.0"):
        (folder / "CHANGELOG.md").write_text(CHANGELOG)
        health = folder / "template/app/health.py"
        health.write_text(health.read_text() + f"\n\n# As of {version}.\n")
        git(folder, "commit", "--quiet", "--all", "--message", version)
        git(folder, "tag", version)
    return folder


@pytest.fixture(scope="module")
def first(template: Path, whole_run: Path) -> Path:
    """A service's repository at the first release, to be copied.

    Its tests are few, so that checks are quick.
    """
    folder = whole_run / "first-release"

    def make() -> str:
        git(whole_run, "init", "--quiet", "--initial-branch", "main", str(folder))
        service = Service(folder, "sqlite")
        service.run("copier", "copy", "--quiet", "--defaults", str(template), ".")
        for test in folder.glob("tests/test_*.py"):
            if test.name != "test_health.py":
                test.unlink()
        service.run("uv", "lock", "--quiet")
        commit(folder)
        git(folder, "config", "receive.denyCurrentBranch", "ignore")
        return str(folder)

    return Path(once(whole_run / "first-release.made", make))


def follow(first: Path, source: str, folder: Path) -> Path:
    """Copy that service, as one that comes from another address of the template."""
    shutil.copytree(first, folder)
    answers = folder / ".copier-answers.yml"
    answers.write_text(re.sub("_src_path: .*", f"_src_path: {source}", answers.read_text()))
    git(folder, "commit", "--quiet", "--all", "--amend", "--no-edit")
    return folder


@pytest.fixture
def origin(first: Path, released: Path, tmp_path: Path) -> Path:
    """A service's repository, at the first release."""
    return follow(first, f"file://{released}", tmp_path / "service")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tools") / "environment"


@pytest.fixture
def runner(origin: Path, tools: Path, tmp_path: Path) -> Runner:
    folder = tmp_path / "runner"
    folder.mkdir()
    return Runner(origin / ".github/workflows/update.yml", origin, folder, tools)


def test_a_newer_release_becomes_a_pull_request_with_its_notes(
    runner: Runner, origin: Path
) -> None:
    runner.run("ask")
    assert runner.context["needs.ask.outputs.new"] == "9002.0.0"
    runner.run("update")
    runner.run("propose")

    branch = git(origin, "show", "--stat", "--format=%s", "template-9002.0.0")
    assert branch.startswith("Update to 9002.0.0 of the template")
    changed = set(re.findall(r"^ (\S+) +\|", branch, re.MULTILINE))
    assert changed == {".copier-answers.yml", "app/health.py", "openapi.json"}
    calls = runner.calls.read_text()
    assert "pr create --head template-9002.0.0 --title" in calls
    body = [line.removeprefix("body: ") for line in calls.splitlines() if line.startswith("body:")]
    assert "From 9000.0.0 to 9002.0.0" in body[0]
    assert [line for line in body if line.startswith("- ")] == ["- Second.", "- First."]
    assert "token" not in calls


class PrivateTemplate(BaseHTTPRequestHandler):
    """Serves a folder of repositories to those who know the token, as GitHub does."""

    folder: Path
    token = "secret-of-the-reader"

    def do_GET(self) -> None:
        given = self.headers["Authorization"] or ""
        if b64decode(given.removeprefix("Basic ")) != f"x-access-token:{self.token}".encode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        length = int(self.headers["Content-Length"] or 0)
        variables = {
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
            "CONTENT_LENGTH": str(length),
        }
        done = subprocess.run(
            ["git", "http-backend"],
            env=environment(**variables),
            input=self.rfile.read(length),
            capture_output=True,
            check=True,
        )
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + done.stdout)

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None: ...


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_private_template_is_read_with_a_token_that_its_code_never_sees(
    runner: Runner, released: Path, origin: Path, tmp_path: Path
) -> None:
    check = next(it for it in runner.jobs["update"]["steps"] if it.get("name") == "Check")
    check["run"] = (
        'env; git ls-remote --get-url git@github.com:acme/a.git; echo draft=false >> "$GITHUB_OUTPUT"'
    )
    PrivateTemplate.folder = released.parent
    with serve(PrivateTemplate) as server:
        answers = origin / ".copier-answers.yml"
        answers.write_text(answers.read_text().replace(f"file://{released.parent}", server))
        commit(origin)
        runner.context["github.server_url"] = server
        with pytest.raises(AssertionError, match="Authentication failed"):
            runner.run("ask")
        shutil.rmtree(tmp_path / "runner/ask")
        shutil.rmtree(tmp_path / "runner/ask-temp")
        runner.context["secrets.TEMPLATE_READ_TOKEN"] = PrivateTemplate.token

        said = runner.run("ask") + runner.run("update")

    notes = (tmp_path / "runner/artifact-update/notes.md").read_text()
    assert f"From 9000.0.0 to 9002.0.0 of {server}/template.git." in notes
    assert "\n- Second.\n" in notes
    assert "\nhttps://github.com/acme/a.git\n" in said  # an SSH address too
    assert "GIT_CONFIG_VALUE_0=" in said
    assert PrivateTemplate.token not in said


def test_the_newest_release_is_left_alone(runner: Runner, origin: Path) -> None:
    replace(origin / ".copier-answers.yml", "_commit: 9000.0.0", "_commit: 9002.0.0")
    commit(origin)

    assert "There is no newer release." in runner.run("ask")
    assert runner.context["needs.ask.outputs.new"] == ""
    assert runner.calls.read_text() == ""


def test_a_release_is_proposed_once(runner: Runner) -> None:
    runner.variables["PROPOSED"] = "1"

    assert "9002.0.0 has been proposed before." in runner.run("ask")
    assert runner.context["needs.ask.outputs.new"] == ""


def test_a_template_in_a_folder_of_another_machine_is_a_warning(
    runner: Runner, origin: Path
) -> None:
    answers = origin / ".copier-answers.yml"
    answers.write_text(
        re.sub("_src_path: .*", "_src_path: /elsewhere/template", answers.read_text())
    )
    commit(origin)

    assert "::warning::The template's address, /elsewhere/template, is" in runner.run("ask")
    assert runner.context["needs.ask.outputs.new"] == ""


HOOK = """\
#!/bin/sh
env > {leak}
"""
OPEN_WORKFLOW = """\
on: push
permissions: write-all
jobs: {open: {runs-on: ubuntu-latest, steps: [{run: env}]}}
"""


def test_what_may_write_runs_nothing_of_the_release(
    runner: Runner, released: Path, origin: Path, tmp_path: Path
) -> None:
    leak = tmp_path / "leak"
    workflow = released / "template/.github/workflows/open.yml"
    workflow.write_text(OPEN_WORKFLOW)
    commit(released)
    git(released, "tag", "--force", "9002.0.0")

    def attack(step: dict[str, Any], clone: Path) -> None:
        """Do what the code of a release can do while it is checked."""
        if step.get("name") == "Collect the change and the notes":
            (clone / ".git/hooks").mkdir(exist_ok=True)
            for name in ("pre-commit", "post-checkout", "reference-transaction", "pre-push"):
                hook = clone / ".git/hooks" / name
                hook.write_text(HOOK.format(leak=leak))
                hook.chmod(0o755)
            git(clone, "config", "filter.leak.clean", f"env > {leak}; cat")
            (clone / ".gitattributes").write_text("* filter=leak\n")
            (clone / "conftest.py").write_text(f"open({str(leak)!r}, 'w')")

    steps = runner.jobs["update"]["steps"]
    steps.remove(next(step for step in steps if step.get("name") == "Check"))  # takes its time
    runner.run("ask")
    runner.run("update", attack)
    leak.unlink(missing_ok=True)  # of the job whose token may read
    runner.run("propose")

    assert not leak.exists()
    pushed = git(origin, "ls-tree", "-r", "--name-only", "template-9002.0.0").split()
    assert {"app/health.py", "conftest.py"} <= {*pushed}
    assert ".github/workflows/ci.yml" in pushed
    assert ".github/workflows/open.yml" not in pushed
    body = runner.calls.read_text().replace("body: ", "")
    fetch, add = re.findall(r"^    (\w.*)$", body, re.MULTILINE)
    assert fetch == "gh run download 1 --name update --dir ../update"
    shutil.copytree(tmp_path / "runner/artifact-update", tmp_path / "update")
    git(origin, "switch", "--quiet", "template-9002.0.0")
    Typist(origin).type(add)
    assert (origin / ".github/workflows/open.yml").read_text() == OPEN_WORKFLOW


PATCH = """\
diff --git a/{name} b/{name}
new file mode {mode}
--- /dev/null
+++ b/{name}
@@ -0,0 +1 @@
+{text}
"""
LINK = """\
diff --git a/.github b/.github
new file mode 120000
--- /dev/null
+++ b/.github
@@ -0,0 +1 @@
+app
\\ No newline at end of file
"""
MOVED = """\
diff --git a/app/features/__init__.py b/.github/workflows/open.yml
similarity index 100%
rename from app/features/__init__.py
rename to .github/workflows/open.yml
"""
NEW_FILE = PATCH.format(name="new", mode="100644", text="text")
WITHOUT_WORKFLOWS = {  # are proposed without what they do there
    "another file becomes a workflow": MOVED,
    "a workflow, and a file": PATCH.format(name=".github/a", mode="100644", text="a") + NEW_FILE,
}
PATCHES = {
    "a file": NEW_FILE,
    "a hook": PATCH.format(name=".git/hooks/pre-commit", mode="100755", text="exit 1"),
    "a hook, in capitals": PATCH.format(name=".GIT/hooks/pre-commit", mode="100755", text="exit 1"),
    "outside": PATCH.format(name="../outside", mode="100644", text="text"),
    "absolute": PATCH.format(name="/tmp/outside", mode="100644", text="text"),
    "a link in place of the workflows": LINK,
    "nothing": "",
    **WITHOUT_WORKFLOWS,
}


def test_a_patch_changes_nothing_but_the_services_files(origin: Path, tmp_path: Path) -> None:
    workflow = origin / ".github/workflows/update.yml"
    before = git(origin, "ls-tree", "-r", "main", ".github")
    for number, (attack, patch) in enumerate({**PATCHES, "notes": NEW_FILE}.items()):
        folder = tmp_path / f"runner-{number}"
        artifact = folder / "artifact-update"
        artifact.mkdir(parents=True)
        (artifact / "patch").write_text(patch)
        (artifact / "notes.md").write_text("Notes.\n")
        if attack == "notes":  # that would be shown
            (artifact / "notes.md").unlink()
            (artifact / "notes.md").symlink_to("/proc/self/environ")
        runner = Runner(workflow, origin, folder)
        runner.context["needs.ask.outputs.new"] = str(number)

        with suppress(AssertionError):
            runner.run("propose")

        proposed = "pr create" in runner.calls.read_text()
        assert proposed == (attack in ("a file", *WITHOUT_WORKFLOWS)), attack
        if proposed:
            pushed = git(origin, "ls-tree", "-r", f"template-{number}", ".github")
            assert pushed == before, attack
        assert not [*folder.glob("**/outside"), *folder.glob("**/.git/hooks/pre-commit")], attack


def propose_not_ready(
    runner: Runner, before: Callable[[dict[str, Any], Path], None] | None = None
) -> list[str]:
    """Propose an update that is not ready, and return how `gh` was called."""
    runner.context |= {"needs.ask.outputs.old": "9000.0.0", "needs.ask.outputs.new": "9002.0.0"}
    runner.run("update", before)
    runner.run("propose")
    calls = runner.calls.read_text().splitlines()
    titles = [re.findall("--title (.*) --body", call) for call in calls if "create" in call]
    assert all(title == ["Not ready: update to 9002.0.0 of the template"] for title in titles)
    assert "body: - Second." in calls
    return calls


def test_an_update_with_conflicts_is_proposed_as_a_draft_that_names_them(
    runner: Runner, released: Path, origin: Path
) -> None:
    with (released / "template/scripts/dev.py").open("a") as file:
        file.write("\n# As of 9002.0.0.\n")
    commit(released)
    git(released, "tag", "--force", "9002.0.0")
    (origin / "scripts/dev.py").unlink()
    with (origin / "app/health.py").open("a") as file:
        file.write("\n\n# Ours.\n")
    commit(origin)

    calls = propose_not_ready(runner)

    assert next(call for call in calls if "create" in call).endswith("--draft")
    assert "body: - app/health.py: CONFLICT (contents)" in calls
    assert "body: - scripts/dev.py" in calls  # below "Not delivered"
    pushed = git(origin, "show", "template-9002.0.0:app/health.py")
    assert "\n<<<<<<< service\n" in pushed


def test_an_update_that_fails_its_checks_is_proposed_where_there_are_no_drafts_too(
    runner: Runner,
) -> None:
    def fail(step: dict[str, Any], clone: Path) -> None:
        if step.get("name") == "Check":
            (clone / "app/health.py").write_text("import nothing\n")

    runner.variables["NO_DRAFTS"] = "true"
    calls = propose_not_ready(runner, fail)

    drafts = [call.endswith("--draft") for call in calls if "create" in call]
    assert drafts == [True, False]
    assert "body: The checks fail, as the log of this run says." in calls


def test_an_update_that_is_refused_is_not_proposed(runner: Runner, origin: Path) -> None:
    def refuse(step: dict[str, Any], clone: Path) -> None:
        if step.get("name") == "Update":
            (clone / "app/health.py").write_text("Unfinished.\n")

    with pytest.raises(AssertionError, match="Commit or stash these changes first:"):
        runner.run("update", refuse)

    assert git(origin, "branch", "--list", "template-*") == ""


FAILS = """\
#!/bin/sh
count=$(($(cat "$COUNT") + 1))
echo "$count" > "$COUNT"
test "$count" != "$FAILS" || exit 1
exec {program} "$@"
"""


def test_a_proposal_that_failed_anywhere_is_made_by_the_next_run(
    origin: Path, tmp_path: Path
) -> None:
    """Only the last job changes what a later run meets; it fails at each of its commands in turn."""
    workflow = origin / ".github/workflows/update.yml"
    main = git(origin, "rev-parse", "main")
    fails, finished = 0, False
    while not finished:
        fails += 1
        for attempt in ("first", "next"):
            folder = tmp_path / f"{attempt}-{fails}"
            (folder / "artifact-update").mkdir(parents=True)
            patch = NEW_FILE.replace("text", attempt)  # a week later packages are newer
            (folder / "artifact-update/patch").write_text(patch)
            (folder / "artifact-update/notes.md").write_text("Notes.\n")
            runner = Runner(workflow, origin, folder)
            runner.context |= {
                "needs.ask.outputs.new": "9002.0.0",
                "needs.update.outputs.draft": "false",
            }
            (folder / "count").write_text("0")
            programs = {"git": shutil.which("git"), "gh": folder / "bin/real-gh"}
            (folder / "bin/gh").rename(folder / "bin/real-gh")
            for name, program in programs.items():
                (folder / "bin" / name).write_text(FAILS.format(program=program))
                (folder / "bin" / name).chmod(0o755)
            runner.variables |= {"COUNT": str(folder / "count"), "FAILS": "0"}
            if attempt == "first":
                runner.variables["FAILS"] = str(fails)
                with suppress(AssertionError):
                    runner.run("propose")
                finished = int((folder / "count").read_text()) < fails
                if finished:
                    break
            else:
                runner.run("propose")
                assert "pr create --head template-9002.0.0" in runner.calls.read_text(), fails
                assert git(origin, "show", "template-9002.0.0:new") == "next\n"
                git(origin, "branch", "--quiet", "-D", "template-9002.0.0")
    assert fails > 10
    assert git(origin, "rev-parse", "main") == main


def test_a_commit_of_a_person_on_the_proposed_branch_stays(origin: Path, tmp_path: Path) -> None:
    git(origin, "switch", "--quiet", "--create", "template-9002.0.0")
    (origin / "fixed.txt").write_text("By hand.\n")
    commit(origin)
    git(origin, "switch", "--quiet", "main")
    folder = tmp_path / "runner"
    (folder / "artifact-update").mkdir(parents=True)
    (folder / "artifact-update/patch").write_text(NEW_FILE)
    (folder / "artifact-update/notes.md").write_text("Notes.\n")
    runner = Runner(origin / ".github/workflows/update.yml", origin, folder)
    runner.context["needs.ask.outputs.new"] = "9002.0.0"

    runner.run("propose")

    assert git(origin, "show", "template-9002.0.0:fixed.txt") == "By hand.\n"
    assert "pr create --head template-9002.0.0" in runner.calls.read_text()


def test_a_service_that_deleted_the_workflow_does_not_get_it_back(
    released: Path, origin: Path
) -> None:
    workflow = released / "template/.github/workflows/update.yml"
    workflow.write_text(workflow.read_text() + "\n# As of 9003.0.0.\n")
    git(released, "commit", "--quiet", "--all", "--message", "9003.0.0")
    git(released, "tag", "9003.0.0")
    (origin / ".github/workflows/update.yml").unlink()
    commit(origin)

    Service(origin, "sqlite").run("copier", "update", "--defaults", "--skip-answered")

    assert "9003.0.0" in (origin / ".copier-answers.yml").read_text()
    assert not (origin / ".github/workflows/update.yml").exists()


# Checks, the image and audits ---------------------------------------------------------------------


class Advisories(BaseHTTPRequestHandler):
    """What OSV says: there is one, of the package `bad`."""

    bad = ""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        found = [query["package"]["name"] == self.bad for query in queries]
        self.answer({"results": [{"vulns": [ADVISORY]} if bad else {} for bad in found]})

    def do_GET(self) -> None:
        self.answer(ADVISORY | {"affected": []})

    def answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def advisories() -> Iterator[str]:
    with serve(Advisories) as server:
        yield server


def test_an_audit_fails_on_a_known_vulnerability_or_an_unsafe_workflow(
    service: Service, advisories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service.copy(tmp_path / "service")
    service.leave_shared_environment()
    workflow = service.folder / ".github/workflows/ci.yml"
    packages, workflows = (line.split() for line in typed(workflow)["audit"])
    packages += ["--service-url", advisories]

    assert "no known vulnerabilities" in service.run(*packages).stdout
    service.run(*workflows)

    monkeypatch.setattr(Advisories, "bad", "uvicorn")
    workflow.write_text(re.sub("@[0-9a-f]{40} # ", "@", workflow.read_text()))
    vulnerable = service.run(*packages, check=False)
    assert (vulnerable.returncode, ADVISORY["id"] in vulnerable.stdout) == (1, True)
    assert "unpinned-uses" in service.run(*workflows, check=False).stdout


def gitlab_blocks() -> list[str]:
    page = page_text("how-to/gitlab-ci.md")
    return [block.text for block in blocks(page) if block.language == "yaml"]


def test_gitlab_takes_the_recipe(tmp_path: Path) -> None:
    for number, text in enumerate(gitlab_blocks()):
        (tmp_path / f"{number}.yml").write_text(text)

    assert check_schema("gitlab-ci", *sorted(tmp_path.glob("*.yml"))) == ""


def test_gitlab_runs_what_github_runs(template: Path, service: Service) -> None:
    recipe = yaml.safe_load(gitlab_blocks()[0])
    github = typed(template / "template/.github/workflows/ci.yml")
    [own] = [line for line in github["audit"] if ".github" in line]
    github["audit"].remove(own)

    assert [recipe[name]["script"] for name in ("check", "build", "audit")] == [*github.values()]
    dockerfile = (service.folder / "Dockerfile").read_text()
    [uv] = re.findall(r"^FROM ghcr.io/astral-sh/(uv:\S+)", dockerfile, re.MULTILINE)
    [python] = re.findall(r"^FROM (python:[\d.]+)-slim$", dockerfile, re.MULTILINE)
    image = f"ghcr.io/astral-sh/{uv}-{python.replace(':', '')}-trixie-slim"
    assert recipe["default"]["image"] == image


@pytest.mark.long
def test_gitlabs_jobs_pass_in_a_fresh_service(template: Path, tmp_path: Path) -> None:
    """On one database: the jobs are the same for both, and what they type, too."""
    folder = render(template, tmp_path / "service", database="postgresql")
    for test in folder.glob("tests/test_*.py"):
        if test.name != "test_health.py":  # test_checks.py runs them all
            test.unlink()
    service = Service(folder, "postgresql")
    check = yaml.safe_load(gitlab_blocks()[0])["check"]
    service.run("uv", "lock", "--quiet")
    kept = subprocess.check_output(["uv", "cache", "dir"], text=True).strip()
    variables = check["variables"] | {"UV_CACHE_DIR": kept}

    for line in check["script"]:
        service.run("sh", "-c", line, variables=variables)


# An update by hand --------------------------------------------------------------------------------


def test_an_update_by_hand_goes_as_the_page_says(
    first: Path, released: Path, tmp_path: Path
) -> None:
    origin = follow(first, str(released), tmp_path / "service")
    Typist(origin).type("uv run poe openapi")
    commit(origin)
    (origin / "notes.txt").write_text("Mine.\n")
    page, _, rest = page_text("how-to/update.md").partition("### Conflicts")
    printed = [""]

    for block in blocks(page):
        if block.language == "sh":
            printed.append(Typist(origin).type(block.text))
        else:
            assert shows(printed[-1], block.text)

    assert git(origin, "status", "--porcelain") == "?? notes.txt\n"
    (origin / "notes.txt").unlink()
    assert (origin / "app/health.py").read_text().endswith("# As of 9002.0.0.\n")
    renamed = re.search(r"`(uv run poe update --vcs-ref=.*)`", page_text("reference/updates.md"))
    assert renamed
    Typist(origin).type(renamed[1].replace("NAME=ANSWER", "'project_name=Order Desk'"))
    assert git(origin, "diff", "--staged", "--name-only", "app").split() == ["app/__init__.py"]
    commit(origin)
    [move] = [block.text for block in blocks(rest) if "sed" in block.text]
    Typist(origin).type(re.sub("https://.*?\\.git", f"file://{released}", move))
    assert "up-to-date" in Typist(origin).type("copier check-update")


def test_services_below_the_root_are_checked_and_updated_as_the_page_says(
    released: Path, tmp_path: Path
) -> None:
    workflow = released / "template/.github/workflows/ci.yml"
    workflow.write_text(workflow.read_text() + "# Newer.\n")
    commit(released, "9003.0.0")
    git(released, "tag", "9003.0.0")
    root = tmp_path / "root"
    git(tmp_path, "init", "--quiet", "--initial-branch", "main", str(root))
    typist = Typist(
        root,
        {
            "PRE_COMMIT_HOME": str(tmp_path / "pre-commit"),
            "GIT_AUTHOR_NAME": "Test",
            "GIT_AUTHOR_EMAIL": "test@example.com",
            "GIT_COMMITTER_NAME": "Test",
            "GIT_COMMITTER_EMAIL": "test@example.com",
        },
        {
            "copier copy": "copier copy --quiet --defaults --vcs-ref 9000.0.0",
            "uvx pre-commit": "pre-commit",
            "TEMPLATE": str(released),
        },
    )
    page = blocks(page_text("how-to/monorepo.md"))

    for block in page:
        if block.title == "update":
            break
        if block.language == "sh":
            typist.type(block.text)
        else:
            (root / block.title).parent.mkdir(parents=True, exist_ok=True)
            (root / block.title).write_text(block.text)

    # GitHub's files have their form, and what they name is there.
    workflows = sorted((root / ".github/workflows").glob("*.yml"))
    assert [file.name for file in workflows] == ["billing.yml", "orders.yml"]
    assert check_schema("github-workflows", *workflows) == ""
    assert check_schema("dependabot", root / ".github/dependabot.yml") == ""
    assert lint("zizmor", "--offline", "--quiet", "--persona=pedantic", root / ".github") == ""
    for file in workflows:
        content = yaml.safe_load(file.read_text())
        service = root / content["defaults"]["run"]["working-directory"]
        assert service.name == content["name"] == file.stem
        assert (service / "uv.lock").exists()
        [audited] = re.findall(r"--offline (\S+)", file.read_text())
        assert (service / audited).resolve() == root / ".github"
        own = yaml.safe_load((released / "template/.github/workflows/ci.yml").read_text())
        assert str(content["jobs"]).replace("../../.github", ".github") == str(own["jobs"])

    # The hook looks at its own service.
    (root / "README.md").write_text("All services.\n")
    assert "orders...(no files to check)Skipped" in re.sub(
        r"\.{3,}", "...", typist.type("git add --all && git commit --message 'Beside it'")
    )
    mine = root / "services/orders/app/features/mine.py"
    mine.write_text("VALUE  =  1\n")
    refused = typist.try_typing("git add --all && git commit --message 'Badly formatted'")
    assert (refused.returncode, "1 file would be reformatted" in refused.stdout) == (1, True)
    mine.write_text("VALUE = 1\n")
    assert "Passed" in typist.type("git add --all && git commit --message 'Well formatted'")

    # What is unfinished beside it does not matter, and is not touched.
    (root / "README.md").write_text("Unfinished.\n")
    printed = typist.type(block.text)
    assert shows(printed, next(page).text)
    changed = git(root, "diff", "--staged", "--name-only").splitlines()
    assert sorted(changed) == [
        "services/orders/.copier-answers.yml",
        "services/orders/app/health.py",
    ]
    assert git(root, "diff", "--name-only") == "README.md\n"


def test_an_update_says_what_it_did_and_how_to_take_it_back(origin: Path) -> None:
    health = origin / "app/health.py"
    health.write_text(health.read_text() + "\n\n# Ours.\n")
    commit(origin)
    (origin / ".env").write_text("LOG_LEVEL=DEBUG\n")
    fresh = git(origin, "ls-files", "--stage")

    said = Typist(origin).type("copier update --defaults --skip-answered")
    backs_out, *next_steps = re.findall(r"^  (\S.*)", said, re.MULTILINE)
    names, check, sync, poe = [re.split("  +", step)[0] for step in next_steps]

    assert "My Service follows release 9002.0.0 now." in said
    assert "CHANGELOG.md of file://" in said
    printed = Typist(origin).type(names)
    assert "-_commit: 9000.0.0\n+_commit: 9002.0.0" in printed
    with pytest.raises(AssertionError, match="app/health.py:.*: leftover conflict marker"):
        Typist(origin).type(check)
    assert "UU app/health.py" in git(origin, "status", "--short")
    page = page_text("how-to/update.md")
    [markers] = [block.text for block in blocks(page) if "<<< before" in block.text]
    assert shows(health.read_text(), markers)
    assert (sync, poe) == ("uv sync", "uv run poe check")

    (origin / "new.txt").write_text("as a new file of the release")
    Typist(origin).type(backs_out)
    assert git(origin, "status", "--porcelain") == ""
    assert git(origin, "ls-files", "--stage") == fresh
    assert (origin / ".env").exists()
    [taken_back] = [it.text for it in blocks(page) if it.text.startswith("git reset")]
    Typist(origin).type("copier update --defaults --quiet --skip-answered")
    Typist(origin).type(taken_back)
    assert git(origin, "status", "--porcelain") == ""


def test_renovates_configuration_has_its_form(tmp_path: Path) -> None:
    page = page_text("how-to/update.md")
    [configuration] = [block.text for block in blocks(page) if block.language == "json"]
    (tmp_path / "renovate.json").write_text(configuration)

    assert check_schema("renovate", tmp_path / "renovate.json") == ""


# The template's own -------------------------------------------------------------------------------


def test_a_pull_request_shows_what_it_changes_in_each_service(
    template: Path, tmp_path: Path
) -> None:
    origin = tmp_path / "template"
    git(tmp_path, "clone", "--quiet", str(template), str(origin))
    before = git(origin, "rev-parse", "HEAD").strip()
    compose = origin / "template/variants/postgresql/compose.yaml"
    compose.write_text(compose.read_text().replace("postgres:18", "postgres:19"))
    commit(origin)
    folder = tmp_path / "runner"
    folder.mkdir()
    runner = Runner(origin / ".github/workflows/difference.yml", origin, folder)
    runner.context |= {
        "github.event.pull_request.base.sha": before,
        "github.sha": git(origin, "rev-parse", "HEAD").strip(),
    }

    runner.run("render")

    sqlite, postgresql = runner.summary.read_text().split("## postgresql\n")
    assert sqlite == "## sqlite\nNo difference.\n"
    assert "\n-    image: postgres:18\n+    image: postgres:19\n" in postgresql
    assert "compose.yaml | 2 +-" in postgresql
    assert ".copier-answers.yml" not in postgresql


def test_nightly_takes_every_python_from_the_oldest_one_and_every_floor(service: Service) -> None:
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/nightly.yml").read_text())["jobs"]
    matrix = jobs["service"]["strategy"]["matrix"]

    project = (service.folder / "pyproject.toml").read_text()
    [oldest] = re.findall(r'requires-python = ">=(.*)"', project)
    [image] = set(
        re.findall(
            r"^FROM python:([\d.]+)", (service.folder / "Dockerfile").read_text(), re.MULTILINE
        )
    )
    minors = [int(python.removeprefix("3.")) for python in matrix["python"]]
    assert minors == [*range(int(oldest.removeprefix("3.")), minors[-1] + 1)]
    assert image in matrix["python"]
    floors = {it["database"] for it in matrix["include"] if it["resolution"] == "lowest-direct"}
    assert floors == {*DATABASES} == {*matrix["database"]}
    assert all(it["python"] == oldest for it in matrix["include"])
