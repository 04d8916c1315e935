"""From marts to a transition set: the job `python -m rl.datasets.build`.

`--input` is the workspace (it holds `marts/` and `features/`), `--output` the data set's folder.

Here: from one day's tables to the rows of its dialogues, day by day. Not here: which dialogues (`window`), what an
observation is (`rl.encoders.dialogue`), what the arrays must keep (`contract`), how they are written (`writer`), SQL.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rl.catalogue import ActionCatalogue
from rl.datasets.marts import Names, booleans, read_day
from rl.datasets.transitions import NO_ITEM, PROPENSITY_LOGGED, Manifest, TransitionSet
from rl.datasets.window import ChosenDialogues, Day, choose_dialogues, n_steps, started_at
from rl.datasets.writer import TransitionSetWriter
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
from rl.types import Bool1D, Bool2D, Int1D

DIALOGUE_ENCODER_FOLDER = "dialogue"
"""In the data set's folder: the `DialogueEncoder` that makes the same observations of live dialogues."""

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


def build_transition_set(
    workspace: Path, output: Path, settings: BuildSettings, rules: Rules | None = None
) -> tuple[TransitionSet, DialogueEncoder]:
    """Write the transition set of a workspace's window to `output`, replacing it as a whole, and open it.

    One day is in memory at a time. The encoder of live dialogues that belongs to the set is beside it, in
    DIALOGUE_ENCODER_FOLDER, and returned. `rules` are today's rules over eligible actions, as
    `rl.encoders.dialogue.legal_actions` takes them.

    Raises DataError if no dialogue is usable (with the counts), the marts and features do not fit together, or rows
    break the contract; `output` is then left as it was.
    """
    if settings.encoder is None or settings.catalogue is None:
        raise SettingsError("The settings `encoder` (folder) and `catalogue` (JSON file) are missing. Give both.")
    marts = workspace / "marts"
    encoder = load_encoder(settings.encoder)
    vectors = VectorCache.open(workspace / "features" / encoder.encoder_id)
    chosen = choose_dialogues(marts, settings.dataset, settings.window_end)
    live = DialogueEncoder(
        encoder=encoder,
        catalogue=_read_catalogue(settings.catalogue),
        segments=chosen.segments,
        turn_limit=settings.dataset.turn_limit,
        n_last_strategies=settings.dataset.n_last_strategies,
        scrubber=scrubber_for(settings.scrubbing),
    )
    rows = _DayRows(chosen, settings.dataset, live, vectors, rules)
    writing = TransitionSetWriter.replacing(
        output,
        _manifest(chosen, settings, live),
        n_steps=chosen.n_steps,
        n_episodes=chosen.n_episodes,
        observation_size=live.layout.observation_size,
    )
    with writing as writer:
        for day in chosen.read():
            writer.add(rows.of(day))
            report_progress("build", day.episodes.stop, chosen.n_episodes)
        writer.manifest = writer.manifest.model_copy(update=rows.names())
        live.save(writer.folder / DIALOGUE_ENCODER_FOLDER)
    return TransitionSet.open(output), live


def _manifest(chosen: ChosenDialogues, settings: BuildSettings, live: DialogueEncoder) -> Manifest:
    """What is known of the set before its rows are."""
    return Manifest(
        catalogue=tuple(live.catalogue.to_json()),
        reward=settings.dataset.reward,
        training_discount=settings.dataset.training_discount,
        turn_limit=settings.dataset.turn_limit,
        encoder_id=live.encoder.encoder_id,
        segments=live.segments,
        window=chosen.window,
        split=settings.dataset.split,
        counts=chosen.counts,
        feature_layout=live.layout.columns,
        code_revision=settings.code_revision,
    )


class _DayRows:
    """Makes the arrays of one day after the other; only names are kept between them."""

    def __init__(
        self,
        chosen: ChosenDialogues,
        settings: DatasetSettings,
        live: DialogueEncoder,
        vectors: VectorCache,
        rules: Rules | None,
    ) -> None:
        self.chosen, self.settings, self.live, self.vectors, self.rules = chosen, settings, live, vectors, rules
        self.policy_versions, self.state_buckets, self.items = Names(), Names(), Names()
        self.layout: StateLayout = live.layout

    def of(self, day: Day) -> dict[str, NDArray[Any]]:
        """All arrays of the day's dialogues, offsets from 0."""
        steps, lengths = self._steps(day)
        utterances, first, n_turns, turn_keys = self._turns(day)
        episodes = np.repeat(np.arange(len(lengths)), lengths)
        before = _position(turn_keys, episodes, steps.column("turn_index").to_numpy()) - first[episodes]
        segment = _segment_ids(day.dialogues.column("segment"), self.live.segments)
        actions = _action_ids(steps.column("strategy"), self.live.catalogue, day.day)
        latest = _latest_strategies(actions, episodes, self.layout.n_last_strategies + 1)
        points = DecisionPoints(first[episodes], before, segment[episodes], latest[:, 1:])
        of_episodes = self._episodes(day, steps, lengths)
        is_open = of_episodes["truncated"]
        at_end = DecisionPoints(first, n_turns, segment, latest[np.cumsum(lengths) - 1, :-1])
        return {
            "observations": dialogue_state(self.layout, utterances, points),
            "actions": actions,
            "segment": segment[episodes],
            "episode_offsets": np.concatenate(([0], np.cumsum(lengths))),
            **self._masks(steps, actions),
            **self._rewards(steps),
            **self._logged(steps),
            **of_episodes,
            **self._final(utterances, at_end, is_open),
            **_histories(utterances, first[episodes], before, lengths),
        }

    def names(self) -> dict[str, tuple[str, ...]]:
        """Fields of the manifest: what the ids of the rows so far stand for."""
        return {
            "policy_versions": self.policy_versions.names(),
            "state_buckets": self.state_buckets.names(),
            "items": self.items.names(),
        }

    def _steps(self, day: Day) -> tuple[pa.Table, Int1D]:
        """The day's steps in order of dialogue and step, and how many each dialogue has."""
        parts = [f"reward_{part.name}" for part in self.settings.reward.parts]
        table = read_day(self.chosen.marts, "fct_transitions", day.day, _STEP_COLUMNS + parts)
        table, episodes, rows = _of_dialogues(table, day.dialogues)
        order = np.lexsort((table.column("step_index").to_numpy(), episodes))
        lengths = np.bincount(episodes, minlength=day.dialogues.num_rows)
        wrong = int((lengths != n_steps(day.dialogues)).sum())
        if wrong:
            raise DataError(
                f"{day.day}: {wrong} dialogues have other step counts in fct_transitions than in fct_dialogues. "
                "Build the warehouse again for that day."
            )
        steps = table.take(pa.array(order))
        _check_order(steps, lengths, rows[order], day.day)
        return steps, lengths

    def _turns(self, day: Day) -> tuple[Utterances, Int1D, Int1D, NDArray[np.int64]]:
        """The day's utterances; where each dialogue begins; how many it has; sorted (dialogue, turn) keys."""
        table = read_day(self.chosen.marts, "fct_turns", day.day, _TURN_COLUMNS)
        table, episodes, _ = _of_dialogues(table, day.dialogues)
        turn_index = table.column("turn_index").to_numpy()
        order = np.lexsort((turn_index, episodes))
        table = table.take(pa.array(order))
        vectors = self.vectors.lookup(table.column("content_hash"))
        counts = np.bincount(episodes, minlength=day.dialogues.num_rows)
        keys = _turn_key(episodes[order], turn_index[order])
        return Utterances(vectors, _act_ids(table)), np.cumsum(counts) - counts, counts, keys

    def _masks(self, steps: pa.Table, actions: Int1D) -> dict[str, NDArray[Any]]:
        logged_mask = _eligible(steps.column("eligible_strategies").combine_chunks(), self.live.catalogue)
        logged_mask[np.arange(len(actions)), actions] = True
        action_mask = legal_actions(self.live.catalogue, logged_mask, self.rules)
        return {"logged_mask": logged_mask, "action_mask": action_mask}

    def _rewards(self, steps: pa.Table) -> dict[str, NDArray[Any]]:
        reward = steps.column("reward").to_numpy()
        terms = [steps.column(f"reward_{part.name}").to_numpy() for part in self.settings.reward.parts]
        parts = np.stack(terms, axis=1)
        expected = parts @ np.array([part.weight for part in self.settings.reward.parts])
        # A reward that is no number is refused with its row when it is written.
        wrong = np.isfinite(reward) & np.isfinite(expected) & ~np.isclose(expected, reward, rtol=1e-6, atol=1e-6)
        if wrong.any():
            raise DataError(
                f"{int(wrong.sum())} of {len(reward)} steps have another reward in fct_transitions than "
                "`dataset.reward` gives their parts. Build the warehouse again with these weights."
            )
        return {"rewards": reward, "reward_parts": parts}

    def _logged(self, steps: pa.Table) -> dict[str, NDArray[Any]]:
        propensity = pc.fill_null(steps.column("propensity"), float("nan"))
        return {
            "propensities": propensity.to_numpy(),
            "propensity_source": np.full(steps.num_rows, PROPENSITY_LOGGED),
            "policy_version": self.policy_versions.encode(steps.column("policy_version")),
            "state_bucket": self.state_buckets.encode(steps.column("state_bucket")),
            "item_action": self.items.encode(steps.column("item_id"), NO_ITEM),
        }

    def _episodes(self, day: Day, steps: pa.Table, lengths: Int1D) -> dict[str, NDArray[Any]]:
        last = steps.take(pa.array(np.cumsum(lengths) - 1))
        return {
            "terminated": booleans(last, "is_terminated"),
            "truncated": booleans(last, "is_truncated"),
            "started_at": started_at(day.dialogues),
            "customer_index": self.chosen.customer_index[day.episodes],
            "is_customer_known": booleans(day.dialogues, "has_one_customer"),
            "validation": self.chosen.validation[day.episodes],
        }

    def _final(self, utterances: Utterances, at_end: DecisionPoints, is_open: Bool1D) -> dict[str, NDArray[Any]]:
        """What followed the last step where only the log stopped: the whole dialogue as far as it is known."""
        points = DecisionPoints(
            at_end.first_utterance[is_open],
            at_end.n_before[is_open],
            at_end.segment[is_open],
            at_end.last_strategies[is_open],
        )
        observations = np.zeros((len(is_open), self.layout.observation_size), dtype=np.float32)
        observations[is_open] = dialogue_state(self.layout, utterances, points)
        mask = np.zeros((len(is_open), len(self.live.catalogue)), dtype=bool)
        anything = np.tile(self.live.catalogue.selectable, (int(is_open.sum()), 1))
        mask[is_open] = legal_actions(self.live.catalogue, anything, self.rules)
        return {"final_observations": observations, "final_action_mask": mask}


def _check_order(steps: pa.Table, lengths: Int1D, rows: Int1D, day: date) -> None:
    """Raise DataError unless each dialogue's steps are 0, 1, … on ever later turns, and the last one says so.

    `steps` are in order of dialogue and step; `rows` says where each was in the day's table.
    """
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    expected = np.arange(len(first)) - first
    turns = steps.column("turn_index").to_numpy()
    is_later = np.concatenate(([True], turns[1:] > turns[:-1])) | (expected == 0)
    is_end = expected == np.repeat(lengths, lengths) - 1
    wrong = (steps.column("step_index").to_numpy() != expected) | ~is_later
    wrong |= booleans(steps, "is_last_step") != is_end
    if wrong.any():
        shown = ", ".join(map(str, np.sort(rows[wrong])[:3]))
        raise DataError(
            f"{day}: {int(wrong.sum())} of {len(wrong)} steps are out of order: in each dialogue of fct_transitions, "
            "step_index must run 0, 1, 2, … over turns that follow each other, and the last step alone have "
            f"is_last_step; first at rows {shown} of that day. Build the warehouse again for it."
        )


def _histories(utterances: Utterances, first: Int1D, before: Int1D, lengths: Int1D) -> dict[str, NDArray[Any]]:
    """Per step, the utterances since the step before it; what follows the last step is in no history."""
    is_first = np.zeros(len(before), dtype=bool)
    is_first[np.cumsum(lengths) - lengths] = True
    new = np.where(is_first, before, before - np.concatenate(([0], before[:-1])))
    stop = first + before
    rows = np.repeat(stop - new - (np.cumsum(new) - new), new) + np.arange(int(new.sum()))
    return {
        "utterance_vectors": utterances.vectors[rows],
        "utterance_offsets": np.concatenate(([0], np.cumsum(new))),
    }


def _of_dialogues(table: pa.Table, dialogues: pa.Table) -> tuple[pa.Table, Int1D, Int1D]:
    """The rows that belong to the dialogues, the position of their dialogue, and where they were in the table."""
    wanted = dialogues.column("dialogue_id").combine_chunks()
    episodes = pc.index_in(table.column("dialogue_id"), value_set=wanted)
    keep = pc.is_valid(episodes)
    rows = np.flatnonzero(keep.to_numpy())
    return table.filter(keep), np.asarray(episodes.filter(keep).to_numpy().astype(np.int64)), rows


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


def _read_catalogue(path: Path) -> ActionCatalogue:
    try:
        return ActionCatalogue.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise DataError(
            f"{path} is not a JSON catalogue of actions. It is written when the logs are ingested."
        ) from None


def _main(workspace: Path, output: Path, settings: BuildSettings) -> None:
    dataset, _ = build_transition_set(workspace, output, settings)
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
