"""`poe update`: merge a newer release of the template into the service, as git merges a branch.

Copier renders the service's release without an edit, and updates that to the newer one. git merges
the difference into the last commit, in a repository of its own that knows nobody's settings. Only
the result is written: over files that git knows and nobody has touched, and where nothing is.

Options are those of `copier update`: `uv run poe update --vcs-ref 1.2.0`.
It ends with 0; with 3 if there is something to do, conflicts or steps of a release; with 2 if it is
refused or interrupted and nothing has changed.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).resolve().parents[1]
ANSWERS = ".copier-answers.yml"
STEPS = "upgrades/"  # what a release asks of a service: scripts that the owner reads, and then runs
SIGNALS = [kind for kind in signal.Signals if kind.name in ("SIGINT", "SIGTERM", "SIGHUP")]
TAKE_BACK = "git restore --source=HEAD --staged --worktree -- ."

Tree = dict[str, str]  # by path: mode, type and id, as `git ls-tree` says them
Stages = dict[str, list[str]]  # by path of a conflict, as `git update-index` takes them

# What Dependabot raises, each on a line: an action, an image, the least version of a package.
RAISED = re.compile(
    r'(?P<head> *(?:- )?(?:uses: \S+@|FROM \S+:|COPY --from=\S+:|image: \S+:|"[\w.,\[\]-]+>=))'
    r"(?P<value>(?:[0-9a-f]{40} # v)?(?P<number>\d+(?:\.\d+)*))"
    r"(?P<tail>.*)"
)


class Refusal(Exception):
    """Why there is no update, and what to do about it. Nothing has changed."""


def interrupt(*_: object) -> None:
    ignore_signals()  # a second one would end the cleaning up
    raise KeyboardInterrupt("Interrupted.")


def ignore_signals() -> None:
    for kind in SIGNALS:
        signal.signal(kind, signal.SIG_IGN)


def run(
    *command: str, environment: Mapping[str, str] = os.environ, text: str = "", worst: int = 0
) -> str:
    """Run a command in the service's folder. Bytes that are no UTF-8 come and go as they are."""
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env=environment,
        input=text.encode("utf-8", "surrogateescape"),
        capture_output=True,
        check=False,
        start_new_session=True,  # a terminal's Ctrl-C is for this program to act on
    )
    if not 0 <= done.returncode <= worst:  # below 0 by a signal
        raise Refusal(error_in(done.stderr) or f"{command[0]} failed")
    return done.stdout.decode("utf-8", "surrogateescape")


def error_in(said: bytes) -> str:
    """Return what comes after the traceback, if there is one."""
    text = re.sub(r"\x1b\[[\d;]*m", "", said.decode("utf-8", "replace"))
    return re.split(r"^(?=[\w.]+: )", text, flags=re.MULTILINE)[-1].strip()


def git(*words: str, text: str = "") -> str:
    """Run git on the service's repository, as it is set up but for its hooks."""
    without = ("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false")
    return run("git", *without, *words, text=text)


class Store:
    """A repository with the service's objects, and without anybody's settings or attributes."""

    def __init__(self, folder: Path) -> None:
        settings = folder / "gitconfig"
        settings.write_text(
            "[user]\nname = template\nemail = template\n[merge]\ndirectoryRenames = false\n"
        )
        objects = git("rev-parse", "--git-path", "objects").rstrip("\n")
        foreign = [name for name in os.environ if name.startswith("GIT_")]
        self.plain = {name: os.environ[name] for name in os.environ.keys() - foreign} | {
            "GIT_CONFIG_GLOBAL": str(settings),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
        }
        self.own = {"GIT_DIR": str(folder / "store"), "GIT_OBJECT_DIRECTORY": str(FOLDER / objects)}
        self.git("init", "--quiet", "--bare")

    def git(self, *words: str, text: str = "", worst: int = 0) -> str:
        return run("git", *words, environment=self.plain | self.own, text=text, worst=worst)

    def read(self, tree: str) -> Tree:
        lines = self.git("ls-tree", "-r", "-z", "--full-tree", tree).split("\0")[:-1]
        return {path: entry for entry, _, path in (line.partition("\t") for line in lines)}

    def write(self, tree: Tree) -> str:
        self.git("read-tree", "--empty")
        lines = "".join(f"{entry}\t{path}\0" for path, entry in tree.items())
        self.git("update-index", "-z", "--index-info", text=lines)
        return self.git("write-tree", "--missing-ok").strip()

    def take_in(self, folder: Path) -> Tree:
        """Return the tree of a folder's files, of those that git would ignore too."""
        self.git("read-tree", "--empty")
        place = ("-C", str(folder), "-c", "core.bare=false", f"--work-tree={folder}")
        self.git(*place, "add", "--all", "--force", ".")
        return self.read(self.git("write-tree").strip())

    def commit_folder(self, folder: Path) -> None:
        """Put a folder under version control by itself, as Copier wants it."""
        for words in ("init --quiet", "add --all --force", "commit --quiet --message old"):
            run("git", "-C", str(folder), *words.split(), environment=self.plain)

    def text(self, entry: str) -> str:
        return self.git("cat-file", "blob", entry.split()[2])

    def with_text(self, entry: str, text: str) -> str:
        """Return an entry like this one, of another text."""
        mode, kind, _ = entry.split()
        return f"{mode} {kind} {self.git('hash-object', '-w', '--stdin', text=text).strip()}"


# The two sides ------------------------------------------------------------------------------------


def look_ahead() -> tuple[str, str, str]:
    """Return the last commit, the service's place in it, and its answers.

    Raises:
        Refusal: if it can't be updated as it is.
    """
    if find_spec("copier") is None:
        raise Refusal("Copier is not installed here. Type uv run poe update, which has it.")
    if tuple(map(int, re.findall(r"\d+", run("git", "--version"))[:2])) < (2, 38):
        raise Refusal("git 2.38 or newer is needed. With an older one: uvx copier update.")
    try:
        head = git("rev-parse", "HEAD").strip()
        prefix = git("rev-parse", "--show-prefix").rstrip("\n")
        answers = git("show", f"{head}:./{ANSWERS}")
    except Refusal as refusal:
        raise Refusal(f"The last commit has no {ANSWERS} ({refusal}). Commit it.") from None
    if dirty := git("status", "--porcelain", "--untracked-files=no", "--", "."):
        raise Refusal(f"Commit or stash these changes first:\n{dirty.rstrip()}")
    return head, prefix, answers


def release_of(answers: str) -> str:
    found = re.findall(r"^_commit: *['\"]?(.*?)['\"]?$", answers, re.MULTILINE)
    if len(found) != 1 or not re.match(r"v?\d+\.\d", found[0]):
        raise Refusal(
            f"_commit in {ANSWERS} is no release. Write the one that the service comes from, as "
            "its git history tells, and commit. A service that was made from a ZIP, or from a "
            "clone without tags, comes from none: generate it again from a clone with them."
        )
    return str(found[0])


def copier(folder: Path, *words: str) -> None:
    """Run Copier, which may ask its questions; settings that would change files are overridden."""
    settings = {
        "apply.whitespace": "nowarn",
        "core.autocrlf": "false",
        "core.hooksPath": os.devnull,
    }
    given = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    overridden = {"GIT_CONFIG_COUNT": str(given + len(settings))}
    overridden["TMPDIR"] = str(folder.parent)  # what it leaves if it is killed goes with the rest
    for place, (name, value) in enumerate(settings.items(), given):
        overridden |= {f"GIT_CONFIG_KEY_{place}": name, f"GIT_CONFIG_VALUE_{place}": value}
    command = [sys.executable, "-m", "copier", *words, str(folder)]
    done = subprocess.run(
        command, cwd=FOLDER, env={**os.environ, **overridden}, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise Refusal(
            f"Copier: {error_in(done.stderr)}\n"
            'The template\'s documentation says under "Updates" what to do.'
        )


def render(
    store: Store, folder: Path, answers: str, release: str, options: list[str]
) -> tuple[Tree, Tree]:
    """Return what the service's release and the newer one make of its answers.

    The newer one by an update, which asks what is new, and leaves out what is copied once.
    """
    folder.mkdir()
    (folder / ANSWERS).write_bytes(answers.encode("utf-8", "surrogateescape"))
    trust = [option for option in options if option in ("--trust", "--UNSAFE")]
    # As data the answers are checked, and what was edited by hand is refused.
    given = ("--data-file", str(folder / ANSWERS), "--vcs-ref", release)
    copier(folder, "recopy", "--defaults", "--overwrite", "--quiet", *given, *trust)
    old = store.take_in(folder)
    store.commit_folder(folder)
    copier(folder, "update", "--skip-answered", "--quiet", *options)
    return old, store.take_in(folder)


# Versions that the service has raised -------------------------------------------------------------


def versions(text: str) -> dict[tuple[str, str], str]:
    """Return the version of each thing that is named, if always by the same one."""
    found: dict[tuple[str, str], set[str]] = {}
    for match in filter(None, map(RAISED.fullmatch, text.splitlines())):
        found.setdefault((match["head"], match["tail"]), set()).add(match["value"])
    return {around: values.pop() for around, values in found.items() if len(values) == 1}


def number(value: str) -> tuple[int, ...]:
    return tuple(map(int, value.rpartition("v")[2].split(".")))


def settle_versions(store: Store, old: Tree, mine: Tree, new: Tree) -> None:
    """Let the newer of two versions stand where a line of both sides differs in nothing else.

    To git it looks as if the releases had always named the service's version.
    """
    for path in old.keys() & mine.keys() & new.keys():
        if mine[path] == old[path] or new[path] == old[path]:
            continue
        before, after = versions(store.text(old[path])), versions(store.text(mine[path]))
        raised = {
            around: after[around]
            for around in before.keys() & after.keys()
            if number(after[around]) > number(before[around])
        }
        for tree in (old, new) if raised else ():
            lines = store.text(tree[path]).split("\n")
            for place, match in enumerate(map(RAISED.fullmatch, lines)):
                value = match and raised.get((match["head"], match["tail"]))
                if match and value and number(value) >= number(match["value"]):
                    lines[place] = f"{match['head']}{value}{match['tail']}"
            tree[path] = store.with_text(tree[path], "\n".join(lines))


# The merge ----------------------------------------------------------------------------------------


def merge(store: Store, old: Tree, mine: Tree, new: Tree) -> tuple[Tree, Stages, dict[str, str]]:
    """Return git's merge, its conflicts, and the kind of each."""
    parent: tuple[str, ...] = ()
    for name, tree in (("old", old), ("service", mine), ("template", new)):
        commit = store.git("commit-tree", store.write(tree), *parent, "-m", name).strip()
        store.git("update-ref", f"refs/heads/{name}", commit)
        parent = parent or ("-p", commit)
    said = store.git("merge-tree", "--write-tree", "-z", "service", "template", worst=1)
    words = iter(said.split("\0"))
    merged = store.read(next(words))
    stages: Stages = {}
    kinds: dict[str, str] = {}
    for line in takewhile(bool, words):
        entry, _, path = line.partition("\t")
        stages.setdefault(path, []).append(entry)
    for count in takewhile(bool, words):
        paths = [next(words) for _ in range(int(count))]
        kind, _ = next(words), next(words)
        if kind.startswith("CONFLICT"):
            kinds |= dict.fromkeys(paths, kind)
    return merged, stages, kinds


def keep_deleted(merged: Tree, stages: Stages) -> list[str]:
    """Leave out what the service has deleted; return what a release has changed of that."""
    deleted = [
        path for path in stages if {entry.split()[2] for entry in stages[path]} == {"1", "3"}
    ]
    for path in deleted:
        del stages[path]
        merged.pop(path, None)
    return deleted


def settle_notes(store: Store, mine: Tree, new: Tree, merged: Tree) -> tuple[Tree, list[str]]:
    """Return the release's notes, and what stays since the service has moved it.

    A note is what a release leaves of a file that it has moved or removed.
    """
    branch = "refs/heads/template"
    said = store.git("grep", "-lz", "Delete this file[.]", branch, "--", worst=1)
    notes = {path: new[path] for path in new.keys() & said.replace(f"{branch}:", "").split("\0")}
    texts = {entry.split()[2] for entry in notes.values()}
    own = merged.keys() & mine.keys() - new.keys()
    moved = [path for path in own if merged[path].split()[2] in texts]
    merged |= {path: mine[path] for path in moved}
    return notes, moved


def check_nothing_is_lost(paths: Iterable[str], mine: Tree, merged: Tree) -> None:
    """Look at what git doesn't, and could not bring back.

    Raises:
        Refusal: if something is where a release's new file goes, or if git was told to overlook
            an edit.
    """
    found = set()
    for path in paths:
        for name in map(str, list(Path(path).parents)[:-1]):
            place = FOLDER / name
            own = (place / ".git").exists() or place.is_symlink() or not place.is_dir()
            if name in merged if name in mine else os.path.lexists(place) and own:
                found.add(name)
        if os.path.lexists(FOLDER / path):
            found.add(path)
    if found:
        raise Refusal(
            f"A file of the release goes where these are; move or commit them:{listed(found)}"
        )
    flags = (line.partition(" ") for line in git("ls-files", "-v", "-z").split("\0")[:-1])
    hidden = {path for flag, _, path in flags if flag != "H" and mine.get(path) != merged.get(path)}
    if hidden:
        raise Refusal(
            "git was told not to look at these, which the release changes; have it look again by "
            f"git update-index --no-assume-unchanged --no-skip-worktree:{listed(hidden)}"
        )


def write(store: Store, head: str, prefix: str, merged: Tree, stages: Stages) -> None:
    """Bring the merge into the service's folder, and into its index with the conflicts.

    git itself refuses to replace what was edited or committed meanwhile.
    """
    whole = {path: entry for path, entry in store.read(head).items() if not path.startswith(prefix)}
    whole |= {prefix + path: entry for path, entry in merged.items()}
    lines = [f"0 {'0' * 40}\t{prefix}{path}\0" for path in stages]
    for path, entries in stages.items():
        lines += [f"{entry}\t{prefix}{path}\0" for entry in entries]
    ignore_signals()  # until all is written and said
    try:
        git("read-tree", "-m", "-u", head, store.write(whole))
        git("update-index", "-z", "--index-info", text="".join(lines))
    except Refusal as refusal:
        sys.exit(f"It could not be written: {refusal}\nSee git status; to go back: {TAKE_BACK}")


# What is said -------------------------------------------------------------------------------------


def listed(paths: Iterable[str]) -> str:
    """Return a line for each, 10.0.0 behind 2.0.0."""

    def natural(path: str) -> list[str | int]:
        return [int(it) if it.isdecimal() else it for it in re.split(r"(\d+)", path)]

    return "".join(f"\n- {path}" for path in sorted(paths, key=natural))


def update(options: list[str]) -> int:
    head, prefix, answers = look_ahead()
    release = release_of(answers)
    with TemporaryDirectory(prefix="update-", ignore_cleanup_errors=True) as temporary:
        store = Store(Path(temporary))
        all_files = store.read(head)
        mine = {p.removeprefix(prefix): all_files[p] for p in all_files if p.startswith(prefix)}
        old, new = render(store, Path(temporary) / "service", answers, release, options)
        newer = release_of(store.text(new[ANSWERS]))
        if old == new:
            print(f"The service follows {release}, and there is nothing to update.")
            return 0
        old[ANSWERS] = mine[ANSWERS]  # Copier's own, and so the newer ones
        arrived = new.keys() - old.keys()
        settle_versions(store, old, mine, new)
        merged, stages, kinds = merge(store, old, mine, new)
        notes, moved = settle_notes(store, mine, new, merged)
        deleted = [path for path in keep_deleted(merged, stages) if path not in notes]
        check_nothing_is_lost((merged.keys() | arrived) - mine.keys(), mine, merged)
        write(store, head, prefix, merged, stages)
    changed = {path for path in mine | merged if mine.get(path) != merged.get(path)}
    followed = changed - stages.keys() - old.keys() - new.keys()
    print(f"{release} to {newer}: {len(changed)} changed files are in git's index.")
    left = [path for path in changed & notes.keys() if merged.get(path) == notes[path]]
    steps = [path for path in arrived if path.startswith(STEPS)]
    conflicts = [f"{path}: {kinds.get(path, 'CONFLICT')}" for path in stages]
    for said, paths in (
        ("To be resolved; git add each when it is right, or git rm:", conflicts),
        ("Not delivered, since your last commit no longer has it:", deleted),
        ("Delivered to where you seem to have moved it:", followed),
        ("Kept where you have moved it; the release has moved or removed its own:", moved),
        ("Moved or removed, with a note in its place; read it, then git rm --force it:", left),
        ("To be read, and then run in this order, each by `uv run python`:", steps),
    ):
        if paths:
            print(f"\n{said}\n{listed(paths)}")
    sys.stdout.flush()
    print(f"\nTo take all of it back:\n\n    {TAKE_BACK}", file=sys.stderr)
    return 3 if stages or steps else 0


def main() -> None:
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # of a hook that runs this
        os.environ.pop(name, None)
    try:
        for kind in SIGNALS:
            signal.signal(kind, interrupt)
        sys.exit(update(sys.argv[1:]))
    except (Refusal, KeyboardInterrupt) as reason:
        print(f"{reason}\nNothing has changed.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
