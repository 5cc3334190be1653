"""The command line of `poe feature`."""

import signal
import sys
from pathlib import Path

# A Ctrl-C during the imports below shows no traceback: nothing is written before they are done.
signal.signal(signal.SIGINT, signal.SIG_DFL)

EXAMPLE = "example: poe feature orders article:str:100 quantity:int price:decimal:12,2:optional"


def main() -> None:
    import argparse

    from alembic.util import CommandError

    from scripts.generator.feature import HERE, Feature, check_feature
    from scripts.generator.fields import KINDS, read_field
    from scripts.generator.files import write
    from scripts.generator.names import RefusedError, check_name, guess_singular

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser("poe feature", description="Write a feature.", epilog=EXAMPLE)
    parser.add_argument("name", help="its name, a plural")
    parser.add_argument(
        "fields",
        nargs="+",
        metavar="field",
        help="name:type, and behind it a limit, `optional` or `unique`, each after a colon; the"
        f" types are {', '.join(KINDS)}",
    )
    parser.add_argument("--singular", help="the name of one, where the plural does not tell it")
    words = parser.parse_args()
    try:
        check_name(words.name)
        singular = words.singular or guess_singular(words.name)
        fields = [read_field(text, singular) for text in words.fields]
        feature = Feature(words.name, singular, fields)
        check_feature(feature)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        files = write(feature)
    except (RefusedError, CommandError) as error:
        sys.exit(f"{error} Nothing is written.")
    except KeyboardInterrupt:
        sys.exit("Nothing is written.")
    for file in files:
        print(file.relative_to(HERE))
    print("uv run alembic upgrade head   makes the table, as the next start of poe dev does")
    print("uv run poe check              checks and tests it")


def wait_for_others(file: int) -> None:
    """Lock a file until the process ends, however it does.

    Two at once would follow the same migration, and one of them would be registered.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another poe feature is at work: waiting for it.", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


if __name__ == "__main__":
    with (Path(__file__).parents[2] / "pyproject.toml").open() as file:
        wait_for_others(file.fileno())
        main()
