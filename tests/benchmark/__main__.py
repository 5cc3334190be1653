"""What a request costs: the service beside its handlers on the bare driver, and as usually written.

    python3 dev.py benchmark                     both databases, in about four minutes
    python3 dev.py benchmark --database sqlite   one of them

Everything is measured in one run on one machine, in rounds that take turns, so that ratios hold
where single figures do not. It is no test: nothing fails because of a number.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmark import measure
from tests.services import (
    DATABASES,
    PostgreSQLDatabase,
    Service,
    SQLiteDatabase,
    open_database,
    render,
    snapshot,
)


def benchmark(template: Path, folder: Path, name: str, rounds: int) -> dict[str, Any]:
    print(f"{name}: rendering and installing", flush=True)
    service = Service(render(template, folder / name, database=name), name)
    service.run("uv", "sync", "--quiet", "--compile-bytecode")
    (folder / f"{name}-files").mkdir()
    with open_database(name, folder / f"{name}-files") as database:
        service.migrate(database)
        figures: dict[str, Any] = {"cpu": measure.cpu(service, database, rounds)}
        if isinstance(database, PostgreSQLDatabase):
            figures["round_trips"] = measure.round_trips(service, database)
            figures["pool_use"] = measure.throughput(service, database)
        if isinstance(database, SQLiteDatabase):
            figures["thread_hops"] = measure.thread_hops(service, database)
        figures["processes"] = measure.start_and_memory(service, database, 5)
        figures["far_page"] = measure.pages(service, database, rounds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 dev.py benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", choices=DATABASES, action="append", dest="databases")
    parser.add_argument("--rounds", type=int, default=15, help="fewer are faster, and noisier")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        (folder / "settings.yml").write_text("{}")
        os.environ["COPIER_SETTINGS_PATH"] = str(folder / "settings.yml")
        template = snapshot(folder / "template")
        for name in arguments.databases or DATABASES:
            figures = benchmark(template, folder, name, arguments.rounds)
            cpu = figures.pop("cpu")
            for kind, apps in cpu.items():
                base = min(apps["bare"])
                print(
                    kind, {n: f"{min(v) * 1e6:.0f} us {min(v) / base:.2f}" for n, v in apps.items()}
                )
            print(figures)


if __name__ == "__main__":
    main()
