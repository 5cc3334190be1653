"""What a request costs: the service beside its handlers on the bare driver, and beside its peers.

    python3 dev.py benchmark                     both databases, in less than eight minutes
    python3 dev.py benchmark --database sqlite   one of them
    python3 dev.py benchmark --write             both, and the documentation's figures and plots

Everything is measured in one run on one machine, by rounds that take turns, so that ratios hold
where single figures do not. It is no test: nothing fails because of a number.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmark import load, measure, peers, report
from tests.support.databases import DATABASES, PostgreSQLDatabase, SQLiteDatabase, open_database
from tests.support.repository import snapshot
from tests.support.services import Service, render


def benchmark(service: Service, folder: Path, processes: int, rounds: int) -> dict[str, Any]:
    figures = measure_load(service, folder / "load", rounds)
    with open_database(service.database, folder) as database:
        service.migrate(database)
        figures["cpu"] = measure.cpu(service, database, processes, rounds)
        if isinstance(database, PostgreSQLDatabase):
            figures["round_trips"] = measure.round_trips(service, database)
            figures["pool_use"] = measure.pool_use(service, database)
        if isinstance(database, SQLiteDatabase):
            figures["thread_hops"] = measure.thread_hops(service, database)
        figures["processes"] = measure.processes(service, database, 5)
        figures["far_page"] = round(measure.far_page(service, database, 15), 2)
    return figures


def measure_load(service: Service, folder: Path, rounds: int, share: float = 1) -> dict[str, Any]:
    folder.mkdir()
    start = load.on_sqlite if service.database == "sqlite" else load.on_postgresql
    figures: dict[str, Any] = {"ceiling": load.ceiling(service)}
    with start(service, folder) as apps:
        figures["load"] = load.measure(apps, service.database, rounds, share)
        figures["peers"] = {
            name: report.versions(app.service, *peers.VERSIONS[name])
            for name, app in apps.items()
            if name in peers.VERSIONS
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 dev.py benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", choices=DATABASES, action="append", dest="databases")
    parser.add_argument("--processes", type=int, default=3, help="how often each is started anew")
    parser.add_argument("--rounds", type=int, default=4, help="of each process")
    parser.add_argument("--write", action="store_true", help="write the documentation's figures")
    arguments = parser.parse_args()
    databases = arguments.databases or DATABASES
    if arguments.write and set(databases) != set(DATABASES):
        parser.error("--write needs both databases")

    measured: dict[str, dict[str, Any]] = {}
    versions: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        (folder / "settings.yml").write_text("{}")
        os.environ["COPIER_SETTINGS_PATH"] = str(folder / "settings.yml")
        template = snapshot(folder / "template")
        for name in databases:
            print(f"{name}: rendering and installing", flush=True)
            service = Service(render(template, folder / name, database=name), name)
            measure.extend(service)
            service.run("uv", "sync", "--quiet", "--compile-bytecode")
            files = folder / f"{name}-files"
            files.mkdir()
            measured[name] = benchmark(service, files, arguments.processes, arguments.rounds)
            versions[name] = report.versions(service)
            versions |= measured[name].pop("peers")
    figures = report.collect(measured, versions)
    report.show(figures, report.stored())
    if arguments.write:
        report.write(figures)


if __name__ == "__main__":
    main()
