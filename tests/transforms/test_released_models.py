"""What the released models make of noisy tables whose truth is known: honest error bars, less error than raw figures.

Noise and logs are simulated with fixed seeds, so these tests never fail by chance; the margins are what 4 standard
deviations of a binomial share allow at other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from orchestration.settings import TalktrackSettings
from tests.transforms import landing_builder as logs
from tests.transforms.compiled_models import CompiledModels
from tests.transforms.released_builder import Row, released_tables

START = date(2026, 1, 1)
SIGMA = 6.0
N_BUCKETS, N_STRATEGIES = 60, 6
EMPTY = tuple(f"2+|any|new|act {number}" for number in range(14))
NEXT = ("converted", "ended", "2+|any|new|none", "2+|any|new|other", *EMPTY)
Rows = list[Row]
Query = Callable[..., Rows]


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Query:
    """Builds every released model from given tables of a release, and answers a query on them."""
    home = tmp_path_factory.mktemp("compiled")
    logs.write_catalogue(home / "catalogue.csv")
    models = CompiledModels.compile(home / "target", TalktrackSettings(home=home), None, "turn")
    released = [name for name in models.sql if "released" in name or name.startswith("agg_")]

    def answer(sql: str, **tables: Rows) -> Rows:
        with duckdb.connect(config={"threads": 1}) as connection:
            for name, table in released_tables(START, **tables).items():
                connection.register(f"landed_{name}", table)
            models.build(connection, released)
            rows: Rows = connection.execute(sql).to_arrow_table().to_pylist()
            return rows

    return answer


def noisy(rng: np.random.Generator, exact: int) -> int:
    return exact + round(rng.normal(0, SIGMA))


def cells(rng: np.random.Generator, figures: Callable[[str, str, int], Mapping[str, float]]) -> Rows:
    """Cells of one segment with 20 to 600 customers, and what `figures` adds to each."""
    rows = []
    for bucket in range(N_BUCKETS):
        for strategy in range(N_STRATEGIES):
            keys = {"aggregate_bucket": f"{bucket}|any|new|any", "strategy": f"s{strategy}"}
            n_customers = int(rng.integers(20, 600))
            rows.append(
                {
                    **keys,
                    "n_customers": noisy(rng, n_customers),
                    **{f"sigma_{measure}": SIGMA for measure in ("customers", "conversions", "reward")},
                    "n_conversions": 0,
                    "reward": 0.0,
                    **figures(keys["aggregate_bucket"], keys["strategy"], n_customers),
                }
            )
    return rows


def coverage(rows: Rows, truth: Mapping[tuple[str, ...], float], keys: tuple[str, ...]) -> float:
    """Share of published error bars that hold the true value."""
    published = [row for row in rows if not row["is_suppressed"]]
    assert len(published) > 100
    return float(np.mean([row["low"] <= truth[tuple(row[key] for key in keys)] <= row["high"] for row in published]))


def test_error_bars_of_rates_hold_the_truth_and_shrinkage_lowers_the_error(query: Query) -> None:
    rng = np.random.default_rng(0)
    truth: dict[tuple[str, ...], float] = {}

    def converted(bucket: str, strategy: str, n_customers: int) -> dict[str, float]:
        truth[bucket, strategy] = rate = float(rng.beta(4 + int(strategy[1]), 20))
        return {"n_conversions": noisy(rng, int(rng.binomial(n_customers, rate)))}

    rows = query("from agg_conversion_rates where segment = 'new'", cells=cells(rng, converted))

    # 1.5 % is 1.4 standard deviations of 360 bars at 95 %; the seed is fixed
    assert coverage(rows, truth, ("aggregate_bucket", "strategy")) >= 0.935
    published = [row for row in rows if not row["is_suppressed"]]
    true = np.array([truth[row["aggregate_bucket"], row["strategy"]] for row in published])
    shrunk = np.array([row["conversion_rate"] for row in published])
    raw = np.array([row["n_conversions"] / row["n_customers"] for row in published])
    assert np.mean((shrunk - true) ** 2) < 0.8 * np.mean((raw - true) ** 2)


def test_error_bars_of_mean_rewards_hold_the_truth(query: Query) -> None:
    rng = np.random.default_rng(1)
    truth: dict[tuple[str, ...], float] = {}

    def rewarded(bucket: str, strategy: str, n_customers: int) -> dict[str, float]:
        share = float(rng.uniform(0.05, 0.4))
        truth[bucket, strategy] = share * 6.0
        return {"reward": rng.binomial(n_customers, share) * 6.0 + rng.normal(0, SIGMA)}

    rows = query("from agg_rewards where segment = 'new'", cells=cells(rng, rewarded))

    assert coverage(rows, truth, ("aggregate_bucket", "strategy")) >= 0.95


def test_error_bars_of_probabilities_hold_the_truth_and_empty_cells_do_not_fill_up(query: Query) -> None:
    rng = np.random.default_rng(2)
    truth: dict[tuple[str, ...], float] = {}
    steps: Rows = []

    def followed(bucket: str, strategy: str, n_customers: int) -> dict[str, float]:
        shares = np.concatenate((rng.dirichlet([2.0, 6.0, 4.0, 1.0]), np.zeros(len(EMPTY))))
        for following, share, n in zip(NEXT, shares, rng.multinomial(n_customers, shares), strict=True):
            truth[bucket, strategy, following] = float(share)
            keys = {"aggregate_bucket": bucket, "strategy": strategy, "next_bucket": following}
            steps.append({**keys, "n_steps": noisy(rng, int(n)), "sigma_steps": SIGMA})
        return {}

    rows = query(
        "from agg_transitions where segment = 'new' order by aggregate_bucket, strategy, next_bucket",
        cells=cells(rng, followed),
        transitions=steps,
    )

    keys = ("aggregate_bucket", "strategy", "next_bucket")
    assert coverage(rows, truth, keys) >= 0.94
    published = [row for row in rows if not row["is_suppressed"]]
    true = np.array([truth[tuple(row[key] for key in keys)] for row in published])
    clipped = np.array([max(row["n_steps"], 0) for row in published], dtype=float).reshape(-1, len(NEXT))
    naive = (clipped / clipped.sum(axis=1, keepdims=True)).ravel()
    estimated = np.array([row["probability"] for row in published])
    assert estimated.reshape(-1, len(NEXT)).sum(axis=1) == pytest.approx(1)
    assert np.mean((estimated - true) ** 2) < 0.8 * np.mean((naive - true) ** 2)
    is_empty = np.array([row["next_bucket"] in EMPTY for row in published])
    assert estimated[is_empty].sum() < 0.6 * naive[is_empty].sum()


def test_overall_tables_are_the_sum_of_their_segments_with_their_noise(query: Query) -> None:
    shared = {"strategy": "offer", "n_conversions": 5, "reward": 2.5, "sigma_conversions": 3.0, "sigma_reward": 4.0}
    rows = query(
        "from agg_conversion_rates order by segment",
        cells=[
            {**shared, "aggregate_bucket": f"1|any|{segment}|any", "n_customers": n, "sigma_customers": 3.0}
            for segment, n in (("new", 40), ("old", 12), ("other", -4), ("rare", 30))
        ],
    )

    overall, *segments = rows
    assert (overall["segment"], overall["aggregate_bucket"], overall["n_customers"]) == ("all", "1|any|any|any", 78)
    assert overall["sigma"] == pytest.approx(6.0)
    assert overall["sigma_customers"] == pytest.approx(6.0)
    assert [row["is_suppressed"] for row in segments] == [False, True, True, False]
    assert (overall["rho"], overall["delta"], overall["unit_of_privacy"]) == (0.08, 1e-6, "customer")


def test_without_segments_there_is_only_the_overall_table(query: Query) -> None:
    sigmas = {f"sigma_{measure}": 1.0 for measure in ("customers", "conversions", "reward")}
    row = {
        "aggregate_bucket": "1|any|any|any",
        "strategy": "offer",
        "n_customers": 40,
        "n_conversions": 8,
        "reward": 1.0,
    }

    rows = query("from agg_rewards", cells=[{**row, **sigmas}])

    assert [row["segment"] for row in rows] == ["all"]


def test_a_cell_that_noise_made_negative_breaks_nothing(query: Query) -> None:
    cell = {"aggregate_bucket": "1|any|new|any", "strategy": "offer"}
    sigmas = {f"sigma_{measure}": 9.0 for measure in ("customers", "conversions", "reward")}
    steps = [{**cell, "next_bucket": name, "n_steps": -7, "sigma_steps": 9.0} for name in ("converted", "ended")]

    rows = query(
        "from agg_transitions",
        cells=[{**cell, **sigmas, "n_customers": 25, "n_conversions": -3, "reward": -2.0}],
        transitions=steps,
    )

    # nothing is known of the cell or its parent: all outcomes alike
    assert [row["probability"] for row in rows] == [0.5] * 4


def test_no_release_gives_empty_tables(query: Query) -> None:
    for table in ("agg_transitions", "agg_conversion_rates", "agg_rewards", "agg_frequent_replies"):
        assert query(f"from {table}") == []
    assert isinstance(released_tables(START)["cells"], pa.Table)
