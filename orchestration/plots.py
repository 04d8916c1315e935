"""How numbers look on Dagster's asset pages and in MLflow: small PNGs embedded in Markdown, and rounding."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from orchestration.utility import UtilityReport
    from registry.privacy.budget import Entry

Curve = Sequence[tuple[int, float]]
INK, ACCENT, PALE = "#1f2933", "#2f6f9f", "#c7d3dd"
SHADES = ("#d08c3a", "#5b8c5a", "#8d6a9f", "#b0584f", "#7b8794")


def curves_plot(curves: Mapping[str, Curve], title: str) -> Any | None:
    """A figure with one small panel per curve over training steps; None if no curve has two points.

    Timings are left out: they are about the machine, and MLflow keeps them.
    """
    drawn = {name: c for name, c in sorted(curves.items()) if len(c) > 1 and not name.startswith("seconds/")}
    if not drawn:
        return None
    figure, axes = _panels(len(drawn))
    for axis, (name, curve) in zip(axes, drawn.items(), strict=False):
        steps, values = zip(*curve, strict=True)
        axis.plot(steps, values, color=ACCENT, linewidth=1.6)
        axis.set_title(name.replace("/", " · ").replace("_", " "), fontsize=9, color=INK, loc="left")
        axis.set_xlabel("training step", fontsize=8, color=INK)
        axis.xaxis.set_major_locator(_few_ticks())
        axis.yaxis.set_major_locator(_few_ticks())
        axis.xaxis.set_major_formatter(_thousands)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    return figure


@dataclass(frozen=True)
class Interval:
    """One line of an interval plot; a `group` is drawn in one block under its name."""

    group: str
    label: str
    value: float
    low: float
    high: float


def intervals_plot(rows: Sequence[Interval], unit: str, title: str) -> Any:
    """A figure with one horizontal interval per row and a line at the first row's value."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row.group for row in rows))
    heights = [y + 0.6 * groups.index(row.group) for y, row in enumerate(rows)]
    figure = Figure(figsize=(7.2, 0.9 + 0.3 * (heights[-1] + 1)), layout="constrained")
    axis = figure.subplots()
    for y, row in zip(heights, rows, strict=True):
        colour = INK if row.group == groups[0] else ACCENT
        axis.plot([row.low, row.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
        axis.plot([row.value], [y], "o", color=colour, markersize=5)
        axis.annotate(
            f"{row.value:#.3g}  [{row.low:#.3g}, {row.high:#.3g}]",
            (1.02, y),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color=INK,
            va="center",
        )
    firsts = {row.group: number for number, row in reversed(list(enumerate(rows)))}
    labels = [
        f"{row.group}   {row.label}" if number in firsts.values() else row.label for number, row in enumerate(rows)
    ]
    axis.set_yticks(heights, labels, fontsize=8.5)
    axis.set_ylim(heights[-1] + 0.6, -0.6)
    axis.axvline(rows[0].value, color=PALE, linewidth=1, zorder=0)
    axis.set_xlabel(f"{unit} per dialogue", fontsize=9, color=INK)
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    _plain(axis)
    axis.tick_params(axis="y", length=0, labelsize=8.5)
    return figure


def reliability_plot(predicted: Sequence[float], observed: Sequence[float], title: str) -> Any:
    """A figure of observed rates over predicted probabilities, beside the diagonal on which a calibrated model lies.

    Both axes are logarithmic: propensities are divided by, so the small ones matter most. A bin in which nothing was
    observed is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axis = figure.subplots()
    points = [(p, o) for p, o in zip(predicted, observed, strict=True) if p > 0 and o > 0]
    lowest = min((min(point) for point in points), default=0.01)
    axis.plot([lowest, 1], [lowest, 1], color=PALE, linewidth=1)
    axis.plot(*zip(*points, strict=True), "o-", color=ACCENT, linewidth=1.2, markersize=4)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("predicted probability", fontsize=9, color=INK)
    axis.set_ylabel("observed rate", fontsize=9, color=INK)
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    _plain(axis)
    return figure


def spend_plot(rows: Sequence[Entry], rho: float) -> Any:
    """A figure of what each window has spent by purpose, stacked, under the budget `rho` of a window."""
    from matplotlib.figure import Figure

    windows = sorted({row.window for row in rows})
    purposes = list(dict.fromkeys(row.purpose for row in rows))
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axis = figure.subplots()
    below = [0.0] * len(windows)
    for shade, purpose in enumerate(purposes):
        spent = [sum(row.cost.rho for row in rows if (row.window, row.purpose) == (w, purpose)) for w in windows]
        colour = ACCENT if shade == 0 else SHADES[(shade - 1) % len(SHADES)]
        axis.bar([str(w.start) for w in windows], spent, bottom=below, width=0.5, color=colour, label=purpose)
        below = [a + b for a, b in zip(below, spent, strict=True)]
    axis.axhline(rho, color=INK, linewidth=1, linestyle="--", label="budget of a window")
    axis.set_ylim(0, 1.15 * max(rho, *below))
    axis.set_xlim(-0.8, max(len(windows), 6) - 0.2)  # the first window is a bar among bars to come, not a wall
    axis.set_ylabel("ρ (zCDP) per customer", fontsize=9, color=INK)
    axis.set_xlabel("first day of the window", fontsize=9, color=INK)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Privacy spent", fontsize=11, color=INK, x=0.01, ha="left")
    _plain(axis)
    return figure


def errors_plot(report: UtilityReport) -> Any:
    """A figure with one panel per released model: error against both references, by size of cell."""
    by_size = [row for row in report.rates if row.by == "size"]
    models = sorted({row.model for row in by_size})
    figure, axes = _panels(len(models))
    for axis, model in zip(axes, models, strict=False):
        rows = [row for row in by_size if row.model == model]
        for offset, colour, label, values in (
            (-0.2, ACCENT, "against bounded cells", [row.rmse_bounded for row in rows]),
            (0.2, PALE, "against the truth", [row.rmse_truth for row in rows]),
        ):
            heights = [0.0 if value is None else value for value in values]
            axis.bar([x + offset for x in range(len(rows))], heights, width=0.38, color=colour, label=label)
        axis.set_xticks(range(len(rows)), [row.group for row in rows], fontsize=8)
        axis.set_title(model, fontsize=9, color=INK, loc="left")
        axis.set_xlabel("customers in the cell", fontsize=8, color=INK)
        axis.yaxis.set_major_locator(_few_ticks())
    for axis in axes[len(models) :]:
        axis.set_visible(False)
    if models:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="upper right", ncols=2)
    figure.suptitle("Root mean square error of released figures", fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def as_markdown(figure: Any) -> dg.MarkdownMetadataValue:
    """The figure as Markdown with an embedded PNG, which Dagster shows on the asset's page."""
    encoded = base64.b64encode(png(figure)).decode()
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{encoded})")


def png(figure: Any) -> bytes:
    """The figure as PNG bytes, 110 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def rounded(value: float) -> float:
    """Four significant digits: what a reader of a page can use of an estimate."""
    return float(f"{value:.4g}")


def rounded_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same mapping with its fractions rounded for a page."""
    return {key: rounded(value) if isinstance(value, float) else value for key, value in values.items()}


def _panels(n: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    n_rows = max(1, (n + 1) // 2)
    figure = Figure(figsize=(8.4, 2.2 * n_rows + 0.4), layout="constrained")
    axes = list(figure.subplots(n_rows, 2, squeeze=False).flat)
    for axis in axes:
        _plain(axis)
    return figure, axes


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4)


def _thousands(value: float, _position: int) -> str:
    return f"{value:,.0f}"


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
