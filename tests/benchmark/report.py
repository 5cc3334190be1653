"""The results: a table to read, figures to keep, a plot to look at."""

import json
import os
import platform
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tests.support.repository import REPOSITORY
from tests.support.services import Service

FIGURES = REPOSITORY / "docs" / "explanation" / "benchmark.json"
PAGE = FIGURES.with_name("performance.md")
DATABASES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}
KINDS = {"get": "GET by id", "list": "list of 100", "post": "POST", "live": "no database"}
THEMES = {"light": ("#1f2328", "#4059ad", "#b0b7c3"), "dark": ("#e6edf3", "#7f9cf5", "#57606a")}


def machine() -> str:
    """Describe the machine, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {system}"


def versions(service: Service) -> dict[str, str]:
    """Return what ran: Python, and the packages that a request passes through."""
    names = ["fastapi", "starlette", "pydantic", "sqlalchemy", "uvicorn", "uvloop", "h11"]
    names.append({"postgresql": "asyncpg", "sqlite": "aiosqlite"}[service.database])
    program = (
        f"import json, importlib.metadata as m; print(json.dumps([m.version(n) for n in {names}]))"
    )
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
    }


def spread(cpu: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return the quartiles of the ratios of single rounds."""
    found = {}
    for kind, apps in cpu.items():
        rounds = [a / b for a, b in zip(apps["service"], apps["bare"], strict=True)]
        low, _, high = quantiles(rounds, n=4)
        found[kind] = [round(low, 2), round(high, 2)]
    return found


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
        **{
            key: {name: it[key] for name, it in measured.items() if key in it}
            for key in ("round_trips", "thread_hops", "processes", "far_page", "pool_use")
        },
    }


def show(figures: dict[str, Any], before: dict[str, Any] | None) -> None:
    print(f"\n{figures['machine']}")
    for database, found in figures["ratios"].items():
        print(f"\n{database}: CPU of a request, as a multiple of the bare driver's")
        print(f"  {'':12}{'service':>9}{'quartiles':>16}{'with log':>10}{'usual':>8}{'before':>9}")
        for kind, ratio in found.items():
            low, high = figures["spread"][database][kind]
            log = figures["ratios_with_the_log"][database][kind]
            usual = figures["ratios_as_usually_written"][database][kind]
            old = before["ratios"].get(database, {}).get(kind, "") if before else ""
            quartiles = f"{low} – {high}"
            print(f"  {KINDS[kind]:12}{ratio:>9}{quartiles:>16}{log:>10}{usual:>8}{old:>9}")
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


def say(counts: dict[str, float]) -> str:
    return ", ".join(f"{kind} {count:g}" for kind, count in counts.items())


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
    PAGE.write_text(with_tables(PAGE.read_text(), figures))
    for theme in THEMES:
        plot(figures, theme)


def with_tables(page: str, figures: dict[str, Any]) -> str:
    """Put the figures where the page has a place for them."""
    for name, table in tables(figures).items():
        start = f"<!-- {name} -->\n"
        before, found, after = page.partition(start)
        assert found, name
        page = before + start + table + "<!-- end -->" + after.partition("<!-- end -->")[2]
    return page


def tables(figures: dict[str, Any]) -> dict[str, str]:
    ratios, counts, shares = [], [], []
    for database, label in DATABASES.items():
        for kind, ratio in figures["ratios"][database].items():
            low, high = figures["spread"][database][kind]
            log = figures["ratios_with_the_log"][database][kind]
            usual = figures["ratios_as_usually_written"][database][kind]
            ratios.append([label, KINDS[kind], ratio, f"{low} – {high}", log, usual])
        counted = {**figures["round_trips"], **figures["thread_hops"]}[database]
        for kind in ("get", "list", "post", "patch", "delete"):
            row = [counted[name].get(kind, "") for name in ("bare", "service", "usual")]
            counts.append([label, kind.upper(), *(f"{it:g}" if it != "" else "" for it in row)])
        bare = figures["bare_cpu_seconds"][database]
        service = bare["get"] * figures["ratios"][database]["get"]
        parts = (bare["live"], bare["get"] - bare["live"], service - bare["get"])
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


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def plot(figures: dict[str, Any], theme: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    text, ours, others = THEMES[theme]
    mpl.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "benchmark",
        "font.family": "sans-serif",
        "text.color": text,
        "axes.labelcolor": text,
        "xtick.color": text,
        "ytick.color": text,
    }
    databases = list(DATABASES)
    figure, axes = pyplot.subplots(
        1, len(databases), figsize=(9, 3), sharex=True, layout="constrained", squeeze=False
    )
    for axis, database in zip(axes[0], databases, strict=True):
        kinds = [kind for kind in ("post", "list", "get") if kind in figures["ratios"][database]]
        for offset, key, colour, label in (
            (0.2, "ratios", ours, "this service"),
            (-0.2, "ratios_as_usually_written", others, "as usually written"),
        ):
            values = [figures[key][database][kind] for kind in kinds]
            places = [number + offset for number in range(len(kinds))]
            bars = axis.barh(places, values, 0.36, color=colour, label=label)
            axis.bar_label(bars, [f"{value:.1f} ×" for value in values], padding=3, color=text)
        axis.set_yticks(range(len(kinds)), [KINDS[kind] for kind in kinds])
        axis.set_title(DATABASES[database], color=text)
        axis.axvline(1, color=text, linewidth=1, linestyle=":")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_xlim(0, 9)
    figure.supxlabel("CPU of a request; 1 is the bare driver")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2
    )
    figure.savefig(FIGURES.with_name(f"benchmark-{theme}.svg"), transparent=True)
    pyplot.close(figure)
