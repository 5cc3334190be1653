"""The results: a table to read, figures to keep, a plot to look at."""

import json
import os
import platform
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tests.benchmark import plots
from tests.benchmark.names import APPS, CLIENTS, DATABASES, KINDS
from tests.support.repository import REPOSITORY
from tests.support.services import Service

FIGURES = REPOSITORY / "docs" / "explanation" / "benchmark.json"
PAGE = FIGURES.with_name("performance.md")
README = REPOSITORY / "README.md"
COST = """\
- One client: a read takes {get} times the CPU of the bare driver, a list of 100 {list}, a write
  {post}, and {once} if it is one statement without a transaction.
- 200 clients: {rate:,.0f} reads a second, {of_bare:.0%} of what the bare driver does on its pool and
  {of_peers:.1f} times the best of the others; 99 % are answered within {p99}.
- A route without a database takes {plain} times a bare application's CPU; a read with twenty
  resources, {routing} times that with one.
"""
ORDER = [*KINDS.values()]


def machine() -> str:
    """Describe the machine, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {system}"


def versions(service: Service, *names: str) -> dict[str, str]:
    """Return what ran: Python, and the packages that a request passes through."""
    if not names:
        names = ("fastapi", "starlette", "pydantic", "sqlalchemy", "uvicorn", "uvloop", "h11")
        names += ({"postgresql": "asyncpg", "sqlite": "aiosqlite"}[service.database],)
    program = f"import json, importlib.metadata as m; print(json.dumps([m.version(n) for n in {[*names]}]))"
    listed = service.run(".venv/bin/python", "-c", program).stdout
    return {
        "python": platform.python_version(),
        **dict(zip(names, json.loads(listed), strict=True)),
    }


def ratios(cpu: dict[str, dict[str, list[float]]], name: str) -> dict[str, float]:
    """Return the median of the ratios of single rounds to the bare driver's, for each kind."""
    return {
        kind: round(median(a / b for a, b in zip(apps[name], apps["bare"], strict=True)), 2)
        for kind, apps in cpu.items()
        if name in apps
    }


def spread(cpu: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return the quartiles of the ratios of single rounds."""
    found = {}
    for kind, apps in cpu.items():
        rounds = [a / b for a, b in zip(apps["service"], apps["bare"], strict=True)]
        low, _, high = middle(rounds)
        found[kind] = [low, high]
    return found


def routing(cpu: dict[str, dict[str, list[float]]]) -> list[float]:
    """Return the quartiles of a GET's cost with twenty resources, as a multiple of that with one."""
    pairs = zip(cpu["get"]["twenty"], cpu["get"]["service"], strict=True)
    return middle([twenty / one for twenty, one in pairs])


def middle(values: list[float], digits: int = 2) -> list[float]:
    """Return the quartiles: the second is the median."""
    found = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [round(value, digits) for value in found]


def collect(
    measured: dict[str, dict[str, Any]], versions: dict[str, dict[str, str]]
) -> dict[str, Any]:
    return {
        "machine": machine(),
        "versions": versions,
        "ratios": {name: ratios(it["cpu"], "service") for name, it in measured.items()},
        "spread": {name: spread(it["cpu"]) for name, it in measured.items()},
        "ratios_with_the_log": {
            name: ratios(it["cpu"], "logging") for name, it in measured.items()
        },
        "ratios_as_usually_written": {
            name: ratios(it["cpu"], "usual") for name, it in measured.items()
        },
        "bare_cpu_seconds": {
            name: {kind: min(apps["bare"]) for kind, apps in it["cpu"].items()}
            for name, it in measured.items()
        },
        "routing": {name: routing(it["cpu"]) for name, it in measured.items()},
        **{
            key: {name: it[key] for name, it in measured.items() if key in it}
            for key in (
                *("round_trips", "thread_hops", "processes", "far_page", "pool_use"),
                *("load", "ceiling"),
            )
        },
    }


def show(figures: dict[str, Any], before: dict[str, Any] | None) -> None:
    print(f"\n{figures['machine']}")
    for database, found in figures["ratios"].items():
        print(f"\n{database}: CPU of a request, as a multiple of the bare driver's")
        print(f"  {'':22}{'service':>9}{'quartiles':>16}{'with log':>10}{'usual':>8}{'before':>9}")
        for kind, ratio in found.items():
            low, high = figures["spread"][database][kind]
            log = figures["ratios_with_the_log"][database].get(kind, "")
            usual = figures["ratios_as_usually_written"][database].get(kind, "")
            old = before["ratios"].get(database, {}).get(kind, "") if before else ""
            quartiles = f"{low} – {high}"
            print(f"  {KINDS[kind]:22}{ratio:>9}{quartiles:>16}{log:>10}{usual:>8}{old:>9}")
        for name, counts in figures["round_trips"].get(database, {}).items():
            print(f"  round trips, {name}: {say(counts)}")
        for name, counts in figures["thread_hops"].get(database, {}).items():
            print(f"  thread hops, {name}: {say(counts)}")
        for name, process in figures["processes"][database].items():
            seconds, memory = process["start_seconds"], process["memory_bytes"] / 2**20
            print(f"  {name}: first answer after {seconds:.2f} s, {memory:.0f} MiB resident")
        print(f"  page behind a million rows: {figures['far_page'][database]:.2f} × the first")
        for clients, used in figures["pool_use"].get(database, {}).items():
            print(f"  {clients} clients: {used:.0%} of what the pool allows")
        low, middle, high = figures["routing"][database]
        print(f"  twenty resources: {middle} times what one takes ({low} – {high})")
        print(f"\n{database}: under load")
        for clients, apps in figures["load"][database].items():
            for name, kinds in apps.items():
                for kind, found in kinds.items():
                    print(
                        f"  {clients:>3} clients {KINDS[kind]:12}{APPS[name]:20}{say_load(found)}"
                    )


def say(counts: dict[str, float]) -> str:
    return ", ".join(f"{kind} {count:g}" for kind, count in counts.items())


def say_load(found: dict[str, list[float]]) -> str:
    low, rate, high = found["requests_per_second"]
    return (
        f"{rate:6,.0f}/s ({low:,.0f} – {high:,.0f}, {found['throughput_of_bare'][1]:.2f} of bare)"
        f"  p50 {ms(found['median_seconds'])}  p99 {ms(found['p99_seconds'])}"
        f"  CPU {found['cpu_seconds'][1] * 1e6:,.0f} µs"
        f"  {found['connections_per_second'][1]:.0f} connections/s"
    )


def ms(seconds: list[float]) -> str:
    return f"{seconds[1] * 1000:,.0f} ms"


def stored() -> dict[str, Any] | None:
    """Return the figures of the documentation, if they are of this machine."""
    if not FIGURES.exists():
        return None
    figures: dict[str, Any] = json.loads(FIGURES.read_text())
    if figures["machine"] == machine():
        return figures
    print(f"Not compared with {FIGURES.name}, which is of another machine: {figures['machine']}")
    return None


def write(figures: dict[str, Any]) -> None:
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text(), tables(figures)))
    README.write_text(with_tables(README.read_text(), {"cost": cost(figures)}))
    plots.draw(figures, FIGURES.parent)


def with_tables(page: str, tables: dict[str, str]) -> str:
    """Put the figures where the page has a place for them."""
    for name, table in tables.items():
        start = f"<!-- {name} -->\n"
        before, found, after = page.partition(start)
        assert found, name
        page = before + start + table + "<!-- end -->" + after.partition("<!-- end -->")[2]
    return page


def cost(figures: dict[str, Any]) -> str:
    """Return what the README says, in three lines."""
    ratios, load = figures["ratios"]["postgresql"], figures["load"]["postgresql"]["200"]
    rates = {name: found["get"]["requests_per_second"][1] for name, found in load.items()}
    peers = max(rate for name, rate in rates.items() if name not in ("bare", "service"))
    service = load["service"]["get"]
    return COST.format(
        **ratios,
        rate=rates["service"],
        of_bare=service["throughput_of_bare"][1],
        of_peers=rates["service"] / peers,
        p99=ms(service["p99_seconds"]),
        routing=figures["routing"]["postgresql"][1],
    )


def tables(figures: dict[str, Any]) -> dict[str, str]:
    ratios, counts, shares = [], [], []
    for database, label in DATABASES.items():
        for kind, ratio in figures["ratios"][database].items():
            low, high = figures["spread"][database][kind]
            log = figures["ratios_with_the_log"][database].get(kind, "")
            usual = figures["ratios_as_usually_written"][database].get(kind, "")
            ratios.append([label, KINDS[kind], ratio, f"{low} – {high}", log, usual])
        counted = {**figures["round_trips"], **figures["thread_hops"]}[database]
        for kind in ("get", "list", "post", "once", "patch", "delete"):
            row = [counted[name].get(kind, "") for name in ("bare", "service", "usual")]
            shown = kind.upper() if kind != "once" else KINDS[kind]
            counts.append([label, shown, *(f"{it:g}" if it != "" else "" for it in row)])
        bare = figures["bare_cpu_seconds"][database]
        service = bare["get"] * figures["ratios"][database]["get"]
        parts = (bare["plain"], bare["get"] - bare["plain"], service - bare["get"])
        shares.append([label, *(f"{part / service:.0%}" for part in parts)])
    processes = [
        [
            DATABASES[database],
            {"bare": "bare", "service": "the service", "usual": "as usually written"}[name],
            f"{it['start_seconds']:.2f} s",
            f"{it['memory_bytes'] / 2**20:.0f} MiB",
        ]
        for database, found in figures["processes"].items()
        for name, it in found.items()
    ]
    return {
        "ratios": table(
            ["database", "request", "service", "quartiles", "with its log", "usually written"],
            ratios,
        ),
        "counts": table(["database", "request", "bare", "service", "usually written"], counts),
        "shares": table(
            ["database", "an endpoint without a database", "the driver and its data", "the rest"],
            shares,
        ),
        "load": load_table(figures),
        "routing": "".join(
            f"- {DATABASES[database]}: {middle} times ({low} – {high}).\n"
            for database, (low, middle, high) in figures["routing"].items()
        ),
        "others": table(["database", "", "first answer after", "memory after a row"], processes)
        + "\n"
        + "".join(
            f"- {DATABASES[database]}: a page of 100 behind a million rows takes {ratio} times what"
            " one near the first takes.\n"
            for database, ratio in figures["far_page"].items()
        )
        + "".join(
            f"- {clients} clients, 1 ms of network each way: {used:.0%} of what the pool allows.\n"
            for clients, used in figures["pool_use"]["postgresql"].items()
        ),
    }


def load_table(figures: dict[str, Any]) -> str:
    rows = []
    for database, label in DATABASES.items():
        load = figures["load"][database]
        for kind, name in dict.fromkeys(
            (kind, name) for apps in load.values() for name, kinds in apps.items() for kind in kinds
        ):
            cells, costs, opened = [], [], []
            for clients in CLIENTS:
                found = load.get(clients, {}).get(name, {}).get(kind)
                if found is None:
                    cells.append("")
                    continue
                rate = f"{found['requests_per_second'][1]:,.0f}"
                cells.append(f"{rate}, {ms(found['median_seconds'])}, {ms(found['p99_seconds'])}")
                costs.append(found["cpu_seconds"][1])
                opened.append(found["connections_per_second"][1])
            cost = f"{min(costs) * 1e6:,.0f} µs"
            rows.append([label, KINDS[kind], APPS[name], *cells, cost, f"{max(opened):.0f}"])
    rows.sort(key=lambda row: [*DATABASES.values()].index(row[0]) * 9 + ORDER.index(row[1]))
    head = ["database", "request", "", *(f"{clients} clients" for clients in CLIENTS)]
    return table([*head, "CPU", "opened/s"], rows)


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
