"""Numbers and plots of asset pages."""

from __future__ import annotations

from orchestration.plots import Interval, as_markdown, curves_plot, intervals_plot, rounded, rounded_numbers


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
