"""The benchmark measures what it reports. How much it is, nobody asserts."""

from pathlib import Path

from tests.benchmark import load, measure, report
from tests.benchmark.names import CLIENTS
from tests.support.databases import Database
from tests.support.services import Service


def test_the_benchmark_measures_a_service_and_keeps_its_guarantees(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    (tmp_path / "load").mkdir()
    measure.extend(copy)
    if service.database == "sqlite":
        opened = load.on_sqlite(copy, tmp_path / "load")
        cpu = measure.cpu(copy, migrated, processes=1, rounds=1, share=0.02)
        names = {"get": 5, "list": 4, "post": 4, "once": 2, "plain": 4}
        assert {kind: len(apps) for kind, apps in cpu.items()} == names
        assert report.routing(cpu)[1] > 0
        assert set(report.ratios(cpu, "service")) == set(names)
    else:
        opened = load.on_postgresql(copy, tmp_path / "load", with_peers=False)

    with opened as apps:  # at its end, the watcher looks at the service
        found = load.measure(apps, service.database, rounds=1, share=0.03)

    measured = {(kind, int(clients)) for clients in found for kind in found[clients]["service"]}
    assert measured == set(load.LOADS[service.database])
    assert {clients for clients in found} <= set(CLIENTS)
    for clients in found:
        for name in ("bare", "service", "usual"):
            for figures in found[clients][name].values():
                assert all(low <= middle <= high for low, middle, high in figures.values())
                assert figures["requests_per_second"][1] > 0
                assert figures["cpu_seconds"][1] > 0
    steady = [kinds["connections_per_second"] for kinds in found["200"]["service"].values()]
    assert steady == [[0, 0, 0]]
