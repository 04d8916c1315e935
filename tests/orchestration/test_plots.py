"""Numbers and plots of asset pages."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from orchestration.plots import (
    Interval,
    as_markdown,
    curves_plot,
    errors_plot,
    intervals_plot,
    rounded,
    rounded_numbers,
    spend_plot,
)
from orchestration.utility import SIZES, RateError, UtilityReport
from registry.privacy.budget import BudgetLedger, Cost
from registry.privacy.windows import Window


def test_timings_and_single_points_are_no_learning_curves() -> None:
    curves = {"losses/td": [(1, 0.5), (2, 0.4)], "policy/divergence": [(2, 0.1)], "seconds/step": [(1, 0.1), (2, 0.1)]}

    figure = curves_plot(curves, "cql")

    assert figure is not None
    assert [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()] == ["losses · td"]
    assert curves_plot({"policy/divergence": [(2, 0.1)]}, "cql") is None


def test_a_group_of_intervals_is_named_once() -> None:
    rows = [Interval("behavior", "as logged", 17.7, 16.9, 18.6)]
    rows += [Interval("cql", name, 22.1, 19.9, 24.3) for name in ("DR", "WIS")]

    figure = intervals_plot(rows, "EUR", "Value")

    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["behavior   as logged", "cql   DR", "WIS"]
    assert as_markdown(figure).value.startswith("![plot](data:image/png;base64,iVBOR")


def test_fractions_are_rounded_to_four_digits_and_the_rest_is_kept() -> None:
    assert rounded(24.78896717500038) == 24.79
    assert rounded_numbers({"seconds": 0.000123456, "steps": 123456, "kind": "cql"}) == {
        "seconds": 0.0001235,
        "steps": 123456,
        "kind": "cql",
    }


def test_spend_is_stacked_by_purpose_under_the_budget_of_a_window(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "budget.db", "w")
    first = Window(date(2026, 1, 1), date(2026, 1, 29))
    for window, purpose, micro in (
        (first, "tables", 80_000),
        (first, "gate:cql", 5_000),
        (first.next(), "tables", 80_000),
    ):
        ledger.reserve(window, purpose, release_id="r", cost=Cost(micro), budget=Cost(100_000))

    (axis,) = spend_plot([row for row in ledger.rows() if row.kind == "reservation"], 0.1).axes

    bars = ((bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height()) for bar in axis.patches)
    assert {(round(x), round(top, 6)) for x, top in bars} == {(0, 0.08), (0, 0.085), (1, 0.08)}
    assert axis.lines[0].get_ydata()[0] == 0.1
    assert [text.get_text() for text in axis.get_legend().get_texts()][-2:] == ["tables", "gate:cql"]


def test_errors_have_a_panel_per_model_and_a_bar_per_reference_and_size() -> None:
    rates = [
        RateError(
            model=model,
            by="size",
            group=group,
            n_cells=3,
            n_suppressed=1,
            rmse_bounded=0.1,
            rmse_truth=None,
            bias_truth=None,
            rmse_bounding=None,
            coverage_truth=None,
        )
        for model in ("agg_rewards", "agg_transitions")
        for group in SIZES[:2]
    ]
    report = UtilityReport(
        window_start=date(2026, 1, 1),
        window_end=date(2026, 1, 29),
        release_id="r",
        zone="restricted",
        sums=(),
        rates=tuple(rates),
        n_reply_texts=0,
    )
    shown = [axis for axis in errors_plot(report).axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == ["agg_rewards", "agg_transitions"]
    assert [len(axis.patches) for axis in shown] == [4, 4]
