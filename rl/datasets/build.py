"""From marts to a transition set: the job `python -m rl.datasets.build`.

`--input` is the workspace (it holds `marts/` and `features/`), `--output` the data set's folder.

Here: choosing the window and the dialogues, reading day by day, filling the arrays. Not here: what an observation
is (`rl.encoders.dialogue`), what the arrays must keep (`transitions`), SQL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rl.catalogue import ActionCatalogue
from rl.datasets.splits import validation_members
from rl.datasets.transitions import ARRAYS, NO_ITEM, Manifest, TransitionSet, write_transition_set
from rl.encoders.dialogue import (
    NO_ACT,
    NO_STRATEGY,
    UNKNOWN_SEGMENT,
    DecisionPoints,
    DialogueEncoder,
    Rules,
    StateLayout,
    Utterances,
    act_id,
    dialogue_state,
    legal_actions,
)
from rl.encoders.encode import VectorCache
from rl.encoders.encoder import load_encoder
from rl.encoders.scrubbing import scrubber_for
from rl.errors import DataError, SettingsError
from rl.progress import report_progress, report_result, run_job
from rl.settings import DatasetSettings, ScrubbingSettings, Settings
from rl.types import Bool2D, Int1D

DIALOGUE_ENCODER_FOLDER = "dialogue"
"""In the data set's folder: the `DialogueEncoder` that makes the same observations of live dialogues."""

_DIALOGUE_COLUMNS = [
    "dialogue_id", "customer_id", "segment", "started_at", "n_turns", "n_steps", "n_unlabelled_steps", "is_mature",
    "is_incomplete", "is_usable", "has_one_customer",
]  # fmt: skip
_STEP_COLUMNS = [
    "dialogue_id", "step_index", "turn_index", "strategy", "eligible_strategies", "propensity", "policy_version",
    "item_id", "state_bucket", "reward", "is_last_step", "is_terminated", "is_truncated",
]  # fmt: skip
_TURN_COLUMNS = ["dialogue_id", "turn_index", "speaker", "content_hash", "customer_act"]


class BuildSettings(Settings):
    """What the build job is told."""

    dataset: DatasetSettings = DatasetSettings()

    scrubbing: ScrubbingSettings = ScrubbingSettings()
    """As the landing was scrubbed: stored with the encoder of live dialogues."""

    encoder: Path | None = None
    """Folder of the text encoder, `<encoders>/<encoder_id>`, as the encode job reports it. Needed."""

    catalogue: Path | None = None
    """JSON file with the action catalogue in id order. Needed."""

    window_end: date | None = None
    """Last dialogue day; default: the newest day whose dialogues are all mature."""

    code_revision: str = ""
    """Recorded in the manifest."""


@dataclass
class _Names:
    """Dense ids in order of first appearance; the same tables give the same ids."""

    ids: dict[str, int] = field(default_factory=dict)

    def encode(self, column: pa.ChunkedArray, none: int = -1) -> NDArray[np.int32]:
        encoded = column.combine_chunks().dictionary_encode()
        known = [self.ids.setdefault(name, len(self.ids)) for name in encoded.dictionary.to_pylist()]
        places = np.array([*known, none], dtype=np.int32)
        return np.asarray(places[encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)])

    def names(self) -> tuple[str, ...]:
        return tuple(self.ids)


@dataclass(frozen=True)
class _Day:
    """The usable dialogues of a day, and where their rows go."""

    day: date
    dialogues: pa.Table
    first_episode: int
    first_step: int

    @property
    def steps_per_dialogue(self) -> Int1D:
        return np.asarray(self.dialogues.column("n_steps").to_numpy().astype(np.int64))


def build_transition_set(
    workspace: Path, settings: BuildSettings, rules: Rules | None = None
) -> tuple[TransitionSet, DialogueEncoder]:
    """The transition set of a workspace's window, and the encoder of live dialogues that belongs to it.

    `rules` are today's rules over eligible actions, as `rl.encoders.dialogue.legal_actions` takes them.

    Raises DataError if no dialogue is usable (with the counts), or the marts and features do not fit together.
    """
    if settings.encoder is None or settings.catalogue is None:
        raise SettingsError("The settings `encoder` (folder) and `catalogue` (JSON file) are missing. Give both.")
    marts = workspace / "marts"
    encoder = load_encoder(settings.encoder)
    vectors = VectorCache.open(workspace / "features" / encoder.encoder_id)
    dialogues, window = _window(marts, settings)
    days, counts = _usable_days(dialogues)
    segments = _distinct(dialogues.values(), "segment")
    live = DialogueEncoder(
        encoder=encoder,
        catalogue=_read_catalogue(settings.catalogue),
        segments=segments,
        turn_limit=settings.dataset.turn_limit,
        n_last_strategies=settings.dataset.n_last_strategies,
        scrubber=scrubber_for(settings.scrubbing),
    )
    builder = _Builder(marts, settings.dataset, live, vectors, rules, days)
    for done, day in enumerate(days, start=1):
        builder.add(day)
        report_progress("build", done, len(days))
    return builder.finish(window, counts, settings.code_revision), live


class _Builder:
    """Arrays of the whole set, filled a day at a time, so that only one day's tables are in memory."""

    def __init__(
        self,
        marts: Path,
        settings: DatasetSettings,
        live: DialogueEncoder,
        vectors: VectorCache,
        rules: Rules | None,
        days: list[_Day],
    ) -> None:
        self.marts, self.settings, self.live, self.vectors, self.rules = marts, settings, live, vectors, rules
        self.policy_versions, self.state_buckets, self.items = _Names(), _Names(), _Names()
        self.customers = _Names()
        self.layout: StateLayout = live.layout
        last = days[-1]
        n_episodes = last.first_episode + last.dialogues.num_rows
        n_steps = last.first_step + int(last.steps_per_dialogue.sum())
        sizes = {"N": n_steps, "E": n_episodes, "A": len(live.catalogue), "D": self.layout.observation_size}
        sizes["K"] = len(settings.reward.parts)
        self.arrays: dict[str, Any] = {
            name: np.zeros(tuple(sizes[dim] for dim in dims), dtype=dtype)
            for name, (dtype, dims) in ARRAYS.items()
            if set(dims) <= set(sizes)
        }
        self.utterances: list[NDArray[np.float16]] = []
        self.utterance_counts: list[Int1D] = []
        self.lengths: list[Int1D] = []

    def add(self, day: _Day) -> None:
        """Read one day and fill its rows."""
        steps, lengths = self._steps(day)
        utterances, first, n_turns, turn_keys = self._turns(day)
        episodes = np.repeat(np.arange(len(lengths)), lengths)
        turn_index = steps.column("turn_index").to_numpy()
        before = _position(turn_keys, episodes, turn_index) - first[episodes]
        segment = _segment_ids(day.dialogues.column("segment"), self.live.segments)
        rows = slice(day.first_step, day.first_step + len(before))
        at = slice(day.first_episode, day.first_episode + len(lengths))
        actions = _action_ids(steps.column("strategy"), self.live.catalogue, day.day)
        latest = _latest_strategies(actions, episodes, self.layout.n_last_strategies + 1)
        points = DecisionPoints(first[episodes], before, segment[episodes], latest[:, 1:])
        self._fill("observations", rows, dialogue_state(self.layout, utterances, points))
        self._fill("actions", rows, actions)
        self._fill("segment", rows, segment[episodes])
        self._fill_steps(steps, rows, actions)
        self._fill_episodes(day, steps, at, lengths)
        self._fill_final(at, utterances, first, n_turns, segment, latest[np.cumsum(lengths) - 1, :-1])
        self._keep_utterances(utterances, first[episodes], before, lengths)
        self.lengths.append(lengths)

    def finish(self, window: tuple[str, str], counts: dict[str, int], code_revision: str) -> TransitionSet:
        """The checked set."""
        manifest = Manifest(
            catalogue=tuple(self.live.catalogue.to_json()),
            reward=self.settings.reward,
            training_discount=self.settings.training_discount,
            turn_limit=self.settings.turn_limit,
            encoder_id=self.live.encoder.encoder_id,
            segments=self.live.segments,
            policy_versions=self.policy_versions.names(),
            state_buckets=self.state_buckets.names(),
            items=self.items.names(),
            window=window,
            counts=counts,
            feature_layout=self.layout.columns,
            code_revision=code_revision,
        )
        customers = np.array(list(self.customers.ids))
        members = validation_members(customers, self.settings.validation_share)
        self.arrays["validation"] = members[self.arrays["customer_index"]]
        return TransitionSet.from_arrays(
            manifest=manifest,
            episode_offsets=np.concatenate(([0], *self.lengths)).cumsum(),
            utterance_vectors=np.concatenate(self.utterances),
            utterance_offsets=np.concatenate(([0], *self.utterance_counts)).cumsum(),
            **self.arrays,
        )

    def _fill(self, name: str, rows: slice, values: NDArray[Any]) -> None:
        self.arrays[name][rows] = values

    def _steps(self, day: _Day) -> tuple[pa.Table, Int1D]:
        """The day's steps in order of dialogue and step, and how many each dialogue has."""
        parts = [f"reward_{part.name}" for part in self.settings.reward.parts]
        table = _read_day(self.marts, "fct_transitions", day.day, _STEP_COLUMNS + parts)
        table, episodes = _of_dialogues(table, day.dialogues)
        order = np.lexsort((table.column("step_index").to_numpy(), episodes))
        lengths = np.bincount(episodes, minlength=day.dialogues.num_rows)
        wrong = int((lengths != day.steps_per_dialogue).sum())
        if wrong:
            raise DataError(
                f"{day.day}: {wrong} dialogues have other step counts in fct_transitions than in fct_dialogues. "
                "Build the warehouse again for that day."
            )
        return table.take(pa.array(order)), lengths

    def _turns(self, day: _Day) -> tuple[Utterances, Int1D, Int1D, NDArray[np.int64]]:
        """The day's utterances; where each dialogue begins; how many it has; sorted (dialogue, turn) keys."""
        table = _read_day(self.marts, "fct_turns", day.day, _TURN_COLUMNS)
        table, episodes = _of_dialogues(table, day.dialogues)
        turn_index = table.column("turn_index").to_numpy()
        order = np.lexsort((turn_index, episodes))
        table = table.take(pa.array(order))
        vectors = self.vectors.lookup(table.column("content_hash"))
        counts = np.bincount(episodes, minlength=day.dialogues.num_rows)
        keys = _turn_key(episodes[order], turn_index[order])
        return Utterances(vectors, _act_ids(table)), np.cumsum(counts) - counts, counts, keys

    def _fill_steps(self, steps: pa.Table, rows: slice, actions: Int1D) -> None:
        logged_mask = _eligible(steps.column("eligible_strategies").combine_chunks(), self.live.catalogue)
        logged_mask[np.arange(len(actions)), actions] = True
        self._fill("logged_mask", rows, logged_mask)
        self._fill("action_mask", rows, legal_actions(self.live.catalogue, logged_mask, self.rules))
        self._fill_rewards(steps, rows)
        propensity = pc.fill_null(steps.column("propensity"), float("nan"))
        self._fill("propensities", rows, propensity.to_numpy())
        self._fill("policy_version", rows, self.policy_versions.encode(steps.column("policy_version")))
        self._fill("state_bucket", rows, self.state_buckets.encode(steps.column("state_bucket")))
        self._fill("item_action", rows, self.items.encode(steps.column("item_id"), NO_ITEM))

    def _fill_rewards(self, steps: pa.Table, rows: slice) -> None:
        reward = steps.column("reward").to_numpy()
        parts = [steps.column(f"reward_{part.name}").to_numpy() for part in self.settings.reward.parts]
        weights = [part.weight for part in self.settings.reward.parts]
        wrong = ~np.isclose(np.stack(parts, axis=1) @ np.array(weights), reward, rtol=1e-6, atol=1e-6)
        if wrong.any():
            raise DataError(
                f"{int(wrong.sum())} of {len(reward)} steps have another reward in fct_transitions than "
                "`dataset.reward` gives their parts. Build the warehouse again with these weights."
            )
        self._fill("rewards", rows, reward)
        self._fill("reward_parts", rows, np.stack(parts, axis=1))

    def _fill_episodes(self, day: _Day, steps: pa.Table, at: slice, lengths: Int1D) -> None:
        last = steps.take(pa.array(np.cumsum(lengths) - 1))
        for name, column in (("terminated", "is_terminated"), ("truncated", "is_truncated")):
            self._fill(name, at, pc.fill_null(last.column(column), False).to_numpy(zero_copy_only=False))
        started = day.dialogues.column("started_at").cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        self._fill("started_at", at, started.to_numpy())
        # A dialogue whose customer is unknown stands for a customer of its own.
        customer = pc.coalesce(day.dialogues.column("customer_id"), day.dialogues.column("dialogue_id"))
        self._fill("customer_index", at, self.customers.encode(customer))
        self._fill("is_customer_known", at, _booleans(day.dialogues, "has_one_customer"))

    def _fill_final(
        self,
        at: slice,
        utterances: Utterances,
        first: Int1D,
        n_turns: Int1D,
        segment: Int1D,
        latest: NDArray[np.int64],
    ) -> None:
        """What followed the last step where only the log stopped: the whole dialogue as far as it is known."""
        open_ended = np.flatnonzero(self.arrays["truncated"][at])
        points = DecisionPoints(first[open_ended], n_turns[open_ended], segment[open_ended], latest[open_ended])
        rows = at.start + open_ended
        self.arrays["final_observations"][rows] = dialogue_state(self.layout, utterances, points)
        anything = np.tile(self.live.catalogue.selectable, (len(rows), 1))
        self.arrays["final_action_mask"][rows] = legal_actions(self.live.catalogue, anything, self.rules)

    def _keep_utterances(self, utterances: Utterances, first: Int1D, before: Int1D, lengths: Int1D) -> None:
        """Per step, the utterances since the step before it; what follows the last step is in no history."""
        is_first = np.zeros(len(before), dtype=bool)
        is_first[np.cumsum(lengths) - lengths] = True
        new = np.where(is_first, before, before - np.concatenate(([0], before[:-1])))
        stop = first + before
        rows = np.repeat(stop - new - (np.cumsum(new) - new), new) + np.arange(int(new.sum()))
        self.utterances.append(utterances.vectors[rows])
        self.utterance_counts.append(new)


def _window(marts: Path, settings: BuildSettings) -> tuple[dict[date, pa.Table], tuple[str, str]]:
    """fct_dialogues of the window's days, and the first and last of the days that are there."""
    folder = marts / "fct_dialogues"
    days = sorted(date.fromisoformat(path.name.removeprefix("day=")) for path in folder.glob("day=*"))
    if not days:
        raise DataError(f"{folder} has no days. Build and export the warehouse first.")
    end = settings.window_end or _newest_mature_day(marts, days)
    start = end - timedelta(days=settings.dataset.window_days - 1)
    dialogues = {day: _read_day(marts, "fct_dialogues", day, _DIALOGUE_COLUMNS) for day in days if start <= day <= end}
    return dialogues, (min(dialogues, default=start).isoformat(), max(dialogues, default=end).isoformat())


def _newest_mature_day(marts: Path, days: list[date]) -> date:
    partly: date | None = None
    n_young = 0
    for day in reversed(days):
        mature = _read_day(marts, "fct_dialogues", day, ["is_mature"]).column("is_mature")
        if len(mature) and pc.all(mature).as_py():
            return day
        if pc.any(mature).as_py():
            partly = partly or day
        n_young += len(mature) - (pc.sum(mature).as_py() or 0)
    if partly is None:
        raise DataError(
            f"None of {n_young} dialogues is mature: their outcomes may still arrive. The newest day is {days[-1]}. "
            "Wait until the attribution window is over, or add older logs."
        )
    return partly


def _usable_days(dialogues: dict[date, pa.Table]) -> tuple[list[_Day], dict[str, int]]:
    """The days with usable dialogues, in order, and counts of the dialogues left out, by reason."""
    days: list[_Day] = []
    counts = dict.fromkeys(
        ("excluded_not_mature", "excluded_incomplete", "excluded_unlabelled", "excluded_no_steps"), 0
    )
    n_episodes = n_steps = 0
    for day in sorted(dialogues):
        table = dialogues[day]
        _count_excluded(table, counts)
        usable = table.filter(table.column("is_usable")).sort_by(
            [("started_at", "ascending"), ("dialogue_id", "ascending")]
        )
        if usable.num_rows:
            days.append(_Day(day, usable, n_episodes, n_steps))
            n_episodes += usable.num_rows
            n_steps += int(pc.sum(usable.column("n_steps")).as_py())
    if not days:
        reasons = ", ".join(f"{n} {name.removeprefix('excluded_')}" for name, n in counts.items() if n) or "none at all"
        raise DataError(
            f"No dialogue of the window is usable; left out: {reasons}. Widen `dataset.window_days`, add logs, or "
            "complete the strategies (unlabelled) and the quarantined records (incomplete)."
        )
    return days, counts


def _count_excluded(table: pa.Table, counts: dict[str, int]) -> None:
    """Add each dialogue that is not usable under the first reason that holds."""
    left = ~_booleans(table, "is_usable")
    reasons = {
        "excluded_not_mature": ~_booleans(table, "is_mature"),
        "excluded_incomplete": _booleans(table, "is_incomplete"),
        "excluded_unlabelled": table.column("n_unlabelled_steps").to_numpy() > 0,
        "excluded_no_steps": np.ones(table.num_rows, dtype=bool),
    }
    for name, holds in reasons.items():
        counts[name] += int((left & holds).sum())
        left = left & ~holds


def _booleans(table: pa.Table, column: str) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(table.column(column), False).to_numpy(zero_copy_only=False), dtype=bool)


def _distinct(tables: Iterable[pa.Table], column: str) -> tuple[str, ...]:
    usable = (table.filter(table.column("is_usable")).column(column).unique().to_pylist() for table in tables)
    return tuple(sorted({name for names in usable for name in names if name is not None}))


def _of_dialogues(table: pa.Table, dialogues: pa.Table) -> tuple[pa.Table, Int1D]:
    """The rows that belong to the dialogues, and the position of their dialogue."""
    wanted = dialogues.column("dialogue_id").combine_chunks()
    episodes = pc.index_in(table.column("dialogue_id"), value_set=wanted)
    keep = pc.is_valid(episodes)
    return table.filter(keep), np.asarray(episodes.filter(keep).to_numpy().astype(np.int64))


def _turn_key(episodes: Int1D, turn_index: Int1D) -> NDArray[np.int64]:
    return (np.asarray(episodes, dtype=np.int64) << 32) | np.asarray(turn_index, dtype=np.int64)


def _position(keys: NDArray[np.int64], episodes: Int1D, turn_index: Int1D) -> Int1D:
    """Where the turns of steps are among the day's utterances."""
    wanted = _turn_key(episodes, turn_index)
    places = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    missing = len(wanted) if len(keys) == 0 else int((keys[places] != wanted).sum())
    if missing:
        raise DataError(f"{missing} steps have no turn in fct_turns. Build and export the warehouse again.")
    return np.asarray(places)


def _act_ids(turns: pa.Table) -> NDArray[np.int64]:
    """(U,) position in CUSTOMER_ACTS of each customer turn's act, NO_ACT for agent turns."""
    acts = turns.column("customer_act").combine_chunks().dictionary_encode()
    known = np.array([act_id(act) for act in acts.dictionary.to_pylist()] + [act_id("other")], dtype=np.int64)
    ids = known[acts.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]
    is_customer = pc.equal(turns.column("speaker"), "customer").to_numpy(zero_copy_only=False)
    return np.asarray(np.where(is_customer, ids, NO_ACT))


def _action_ids(strategies: pa.ChunkedArray, catalogue: ActionCatalogue, day: date) -> NDArray[np.int64]:
    ids = pc.index_in(strategies, value_set=pa.array(catalogue.names))
    if ids.null_count:
        raise DataError(
            f"{day}: {ids.null_count} steps have a strategy that the catalogue lacks. Build the warehouse with the "
            "catalogue of this workspace, then the data set again."
        )
    return np.asarray(ids.to_numpy().astype(np.int64))


def _latest_strategies(actions: Int1D, episodes: Int1D, n: int) -> NDArray[np.int64]:
    """(N, n) the action of the step itself, of the step before it in the same episode, and so on."""
    latest = np.full((len(actions), n), NO_STRATEGY, dtype=np.int64)
    for k in range(n):
        same = episodes[k:] == episodes[: len(episodes) - k]
        latest[k:, k] = np.where(same, actions[: len(actions) - k], NO_STRATEGY)
    return latest


def _eligible(eligible: pa.ListArray, catalogue: ActionCatalogue) -> Bool2D:
    """(N, A) the named actions; all selectable ones where the log does not say. Unknown names are no action."""
    ids = pc.index_in(pc.list_flatten(eligible), value_set=pa.array(catalogue.names))
    rows = pc.list_parent_indices(eligible).filter(pc.is_valid(ids)).to_numpy()
    mask = np.zeros((len(eligible), len(catalogue)), dtype=bool)
    mask[rows, ids.drop_null().to_numpy()] = True
    mask[pc.is_null(eligible).to_numpy(zero_copy_only=False)] = catalogue.selectable
    return mask


def _segment_ids(column: pa.ChunkedArray, segments: tuple[str, ...]) -> NDArray[np.int64]:
    ids = pc.index_in(column, value_set=pa.array(segments, type=pa.string()), skip_nulls=True)
    return np.asarray(pc.fill_null(ids, UNKNOWN_SEGMENT).to_numpy().astype(np.int64))


def _read_day(marts: Path, model: str, day: date, columns: list[str]) -> pa.Table:
    folder = marts / model / f"day={day.isoformat()}"
    try:
        # ParquetFile reads the file alone: read_table would add the hive column of its folder.
        return pa.concat_tables(
            [pq.ParquetFile(path).read(columns=columns) for path in sorted(folder.glob("*.parquet"))]
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{folder} cannot be read ({type(error).__name__}). Build and export the warehouse again for that day."
        ) from None


def _read_catalogue(path: Path) -> ActionCatalogue:
    import json

    try:
        return ActionCatalogue.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise DataError(
            f"{path} is not a JSON catalogue of actions. It is written when the logs are ingested."
        ) from None


def _main(workspace: Path, output: Path, settings: BuildSettings) -> None:
    dataset, live = build_transition_set(workspace, settings)
    write_transition_set(output, dataset, also=lambda folder: live.save(folder / DIALOGUE_ENCODER_FOLDER))
    report_result(
        n_steps=dataset.n_steps,
        n_episodes=dataset.n_episodes,
        counts=dataset.manifest.counts,
        window=dataset.manifest.window,
        n_validation_episodes=int(dataset.validation.sum()),
        mean_return=float(dataset.returns.mean()),
        dataset_hash=dataset.manifest.dataset_hash,
        schema_hash=dataset.manifest.schema_hash,
    )


if __name__ == "__main__":
    sys.exit(run_job(_main, BuildSettings, "Build a transition set from the marts of a workspace."))
