"""Plots for Dagster's asset pages and MLflow: small PNGs drawn from numbers, embedded in Markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

Curve = Sequence[tuple[int, float]]
INK, ACCENT, PALE = "#1f2933", "#2f6f9f", "#c7d3dd"


def curves_plot(curves: Mapping[str, Curve], title: str) -> Any:
    """A figure with one small panel per curve; x is the training step."""
    figure, axes = _panels(len(curves))
    for axis, (name, curve) in zip(axes, sorted(curves.items()), strict=False):
        steps, values = zip(*curve, strict=True)
        axis.plot(steps, values, color=ACCENT, linewidth=1.4)
        axis.set_title(name, fontsize=9, color=INK, loc="left")
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def intervals_plot(rows: Sequence[tuple[str, float, float, float]], unit: str, title: str) -> Any:
    """A figure with one horizontal interval per row: (label, value, low, high)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.6 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for y, (_, value, low, high) in enumerate(reversed(rows)):
        axis.plot([low, high], [y, y], color=ACCENT, linewidth=2.4, solid_capstyle="round")
        axis.plot([value], [y], "o", color=INK, markersize=5)
    axis.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)], fontsize=9)
    axis.axvline(rows[0][1], color=PALE, linewidth=1, zorder=0)
    axis.set_xlabel(f"{unit} per dialogue", fontsize=9)
    axis.set_title(title, fontsize=10, loc="left", color=INK)
    _plain(axis)
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


def _panels(n: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    n_rows = max(1, (n + 1) // 2)
    figure = Figure(figsize=(8.4, 2.1 * n_rows + 0.4), layout="constrained")
    axes = list(figure.subplots(n_rows, 2, squeeze=False).flat)
    for axis in axes:
        _plain(axis)
    return figure, axes


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
