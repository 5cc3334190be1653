"""The plots of the documentation, for a light and a dark page."""

from pathlib import Path
from typing import Any

from tests.benchmark.names import APPS, CLIENTS, DATABASES, KINDS

THEMES = {"light": ("#1f2328", "#4059ad", "#b0b7c3"), "dark": ("#e6edf3", "#7f9cf5", "#57606a")}
# Of the apps under load: as different in grey as in colour.
LOAD_COLOURS = {
    "light": ("#1f2328", "#4059ad", "#8c959f", "#b8a15e", "#d0d7de"),
    "dark": ("#e6edf3", "#7f9cf5", "#8b949e", "#a38a44", "#484f58"),
}


def draw(figures: dict[str, Any], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    for theme, (text, *_) in THEMES.items():
        mpl.rcParams |= {
            "svg.fonttype": "none",
            "svg.hashsalt": "benchmark",
            "font.family": "sans-serif",
            "text.color": text,
            "axes.labelcolor": text,
            "xtick.color": text,
            "ytick.color": text,
        }
        for name, plot in (("benchmark", plot_cpu), ("load", plot_load)):
            figure = plot(figures, theme)
            figure.savefig(folder / f"{name}-{theme}.svg", transparent=True)
            pyplot.close(figure)


def plot_cpu(figures: dict[str, Any], theme: str) -> Any:
    from matplotlib import pyplot

    text, ours, others = THEMES[theme]
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
    return figure


def plot_load(figures: dict[str, Any], theme: str) -> Any:
    """GET by id on PostgreSQL: bars of the medians, with the quartiles."""
    from matplotlib import pyplot

    text, *_ = THEMES[theme]
    load = figures["load"]["postgresql"]
    figure, (rates, tails) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, key, scale, title in (
        (rates, "requests_per_second", 1, "requests a second"),
        (tails, "p99_seconds", 1000, "99 % are answered within … ms"),
    ):
        for number, (name, colour) in enumerate(zip(APPS, LOAD_COLOURS[theme], strict=True)):
            found = [load[clients][name]["get"][key] for clients in CLIENTS]
            middles = [middle * scale for _, middle, _ in found]
            errors = [
                [(middle - low) * scale for low, middle, _ in found],
                [(high - middle) * scale for _, middle, high in found],
            ]
            places = [place + (number - 2) * 0.17 for place in range(len(CLIENTS))]
            axis.bar(places, middles, 0.15, color=colour, label=APPS[name])
            axis.errorbar(places, middles, errors, fmt="none", ecolor=text, elinewidth=0.8)
        axis.set_xticks(range(len(CLIENTS)), [f"{clients} clients" for clients in CLIENTS])
        axis.set_title(title, color=text)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    tails.set_yscale("log")
    tails.yaxis.set_major_formatter("{x:,.0f}")
    handles = rates.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=len(APPS))
    return figure
