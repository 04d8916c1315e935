"""Storefront logs and a release of them, in memory: known truth for what is learned from aggregates.

Here: exact bounded tables of simulated dialogues in numpy, the production draw on top. Not here: the dialogues
(`storefront_logs`), the bounding SQL, which has tests of its own (`tests/transforms`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from registry.privacy.grid import CONVERTED, ENDED
from registry.privacy.plan import ReleasePlan, grids_of, measures_of, plan_release
from registry.privacy.settings import GRID_LEVELS, UNIT_OF_PRIVACY, PrivacySettings
from registry.privacy.tables import AlignedTables, draw
from rl.datasets.aggregates import Aggregates, read_aggregates
from rl.datasets.transitions import TransitionSet
from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.encoders.dialogue import DialogueEncoder
from rl.encoders.static import StaticEncoder
from rl.environments.storefront_customers import TURN_LIMIT
from rl.environments.storefront_encoded import StorefrontEncoder
from rl.environments.storefront_items import SEGMENTS, read_storefront_catalogue
from rl.policies.bucketed import BucketIndex, ObservationParts
from tests.studies.storefront_logs import WINDOW, played_set


def storefront_encoder() -> DialogueEncoder:
    """An encoder of the storefront's dialogues whose text vectors are one column of noise: buckets read no text."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = StaticEncoder(np.ones((1, 2), dtype=np.float16), tokenizer, "test")
    return DialogueEncoder(text, read_storefront_catalogue(), tuple(SEGMENTS), TURN_LIMIT, 2)


def storefront_set(n_dialogues: int, seed: int, encoder: StorefrontEncoder | None = None) -> TransitionSet:
    """Dialogues of both logging policies, as `played_set` plays them; by default without words."""
    return played_set(n_dialogues, seed, encoder or StorefrontEncoder(storefront_encoder()))


def plan_at(level: str, settings: PrivacySettings, sampling_share: float = 0.6) -> ReleasePlan:
    """The plan of a level of the grid, whether or not it is mostly noise."""
    names = [s.strategy for s in read_storefront_catalogue().strategies if s.is_selectable]
    plan = plan_release(
        settings.model_copy(update={"grid": "auto", "expected_dialogues": 10**9}),
        strategies=names,
        customer_acts=CUSTOMER_ACTS,
        sampling_share=sampling_share,
    )
    grid = grids_of(settings, names, CUSTOMER_ACTS)[GRID_LEVELS.index(level)]  # type: ignore[arg-type]
    return ReleasePlan(
        settings=settings,
        sampling_share=sampling_share,
        grid=grid,
        measures=measures_of(settings),
        levels=plan.levels,
    )


def exact_tables(dataset: TransitionSet, plan: ReleasePlan, seed: int = 0) -> AlignedTables:
    """Exact bounded sums over the customers who train, as the SQL of the aggregates bounds them."""
    training, grid, rng = dataset.training(), plan.grid, np.random.default_rng(seed)
    texts = [grid.text(bucket) for bucket in grid.buckets]
    bucket = BucketIndex(texts, parts_of(dataset))(training.observations)
    strategies = [dataset.manifest.action_catalogue.names[a] for a in training.actions]
    converted = np.repeat(training.returns > 0, np.diff(training.episode_offsets))
    following = [CONVERTED if c else ENDED for c in converted]
    for row in np.flatnonzero(~training.is_last):
        following[row] = texts[bucket[row + 1]]
    customers = training.customer_index[training.episode_index]
    cells = _positions([*grid.cells()], zip((texts[b] for b in bucket), strategies, strict=True))
    nexts = _positions([*grid.transitions()], zip((texts[b] for b in bucket), strategies, following, strict=True))
    limit = plan.settings.max_cells
    in_cells, in_nexts = _bounded(customers, cells, limit, rng), _bounded(customers, nexts, limit, rng)
    low, high = plan.settings.reward_low, plan.settings.reward_high
    rewards = np.rint(np.clip(training.rewards, low, high).astype(np.float64) * 1000).astype(np.int64)
    return AlignedTables(
        n_steps=np.bincount(nexts[in_nexts], minlength=grid.n_transitions),
        n_customers=np.bincount(cells[in_cells], minlength=grid.n_cells),
        n_conversions=np.bincount(cells[in_cells], converted[in_cells], grid.n_cells).astype(np.int64),
        reward_milli=np.bincount(cells[in_cells], rewards[in_cells], grid.n_cells).astype(np.int64),
        n_replies=np.zeros(grid.n_replies, dtype=np.int64),
        reply_texts={},
    )


def _positions(keys: list[tuple[str, ...]], wanted: Any) -> NDArray[np.int64]:
    places = {key: place for place, key in enumerate(keys)}
    return np.array([places[key] for key in wanted], dtype=np.int64)


def _bounded(
    customers: NDArray[Any], cells: NDArray[np.int64], limit: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows to count: one for each customer and cell, of at most `limit` cells a customer."""
    shuffled = rng.permutation(len(cells))
    pairs = customers[shuffled].astype(np.int64) * (cells.max() + 1) + cells[shuffled]
    kept = shuffled[np.sort(np.unique(pairs, return_index=True)[1])]
    by_customer = kept[np.argsort(customers[kept], kind="stable")]
    owners = customers[by_customer]
    first = np.searchsorted(owners, owners, side="left")
    return np.asarray(by_customer[np.arange(len(owners)) - first < limit])


def parts_of(dataset: TransitionSet) -> ObservationParts:
    """Where the set's observations keep what buckets are made of."""
    manifest = dataset.manifest
    return ObservationParts(
        manifest.feature_layout,
        manifest.segments,
        manifest.action_catalogue.names,
        manifest.turn_limit,
        dataset.observation_size,
    )


def write_release(folder: Path, aligned: AlignedTables, plan: ReleasePlan, release_id: str = "test") -> Aggregates:
    """Draw the tables with the production mechanism, write them as a release does, and read them back."""
    stamp = {
        "release_id": release_id,
        "window_start": WINDOW[0],
        "window_end": WINDOW[1],
        "unit_of_privacy": UNIT_OF_PRIVACY,
        "rho": plan.cost.rho,
        "delta": plan.cost.delta,
        "minimum_customers": plan.settings.minimum_customers,
        "shrinkage": plan.settings.shrinkage,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in draw(aligned, plan, stamp).tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return read_aggregates(folder)
