"""The dialogue state: what a policy sees before an agent turn, of logged dialogues in bulk or of a live one.

Here: the features, their layout, the legal actions, the encoder of live contexts. One function,
`dialogue_state`, makes every observation, so that a policy decides live on what it was trained on. Not here:
reading the marts (`rl.datasets.build`), the text encoder (`encoder`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from rl.catalogue import ActionCatalogue
from rl.encoders.customer_replies import CUSTOMER_ACTS, customer_act
from rl.encoders.encoder import Encoder, load_encoder
from rl.encoders.scrubbing import Scrubber, scrubber_for
from rl.errors import DataError
from rl.files import write_json
from rl.settings import ScrubbingSettings
from rl.types import Bool1D, Bool2D, History, Int1D, Observations, Past

DIALOGUE_FILE = "dialogue.json"
ENCODER_FOLDER = "encoder"

NO_STRATEGY = -1
UNKNOWN_SEGMENT = -1
NO_ACT = -1

Rules = Callable[[Bool2D], Bool2D]
"""Today's rules: (B, A) what was eligible → (B, A) what may be chosen."""


class DialogueTurn(BaseModel):
    """One turn of a live dialogue, as the log would have it."""

    model_config = ConfigDict(extra="ignore")

    speaker: Literal["agent", "customer"]
    text: str
    strategies: tuple[str, ...] | None = None
    """Labels of an agent turn, in order. Without them the turn does not count as a last strategy."""


class DialogueContext(BaseModel):
    """A dialogue before an agent turn: what the decision service, the bundle and the simulator hand over."""

    model_config = ConfigDict(extra="ignore")

    dialogue_id: str = ""
    turns: tuple[DialogueTurn, ...] = ()
    segment: str | None = None
    channel: str | None = None
    locale: str | None = None
    eligible_strategies: tuple[str, ...] | None = None
    """What may be chosen; all selectable strategies where it is not given."""


@dataclass(frozen=True)
class StateLayout:
    """Which features an observation has, and where."""

    utterance_dimensions: int
    n_segments: int
    n_actions: int
    turn_limit: int
    n_last_strategies: int

    @cached_property
    def columns(self) -> dict[str, tuple[int, int]]:
        """Columns [start, stop) by feature, in order.

        `agent_mean`, `customer_mean`, `last_customer`: vectors over the utterances so far, zero where there
        are none. `turn`: agent turns so far, turns remaining and customer turns so far, each over the turn
        limit, and the logarithm of one plus the number of utterances. `segment`: one-hot, the last column for
        an unknown one. `last_strategy_1` is the latest strategy, one-hot, zero where there is none;
        `last_strategy_2` the one before it; and so on. `customer_act`: one-hot of what the latest customer utterance
        does, in the order of `CUSTOMER_ACTS`, zero before any.
        """
        d = self.utterance_dimensions
        sizes = {
            "agent_mean": d,
            "customer_mean": d,
            "last_customer": d,
            "turn": 4,
            "segment": self.n_segments + 1,
        }
        sizes |= {f"last_strategy_{k + 1}": self.n_actions for k in range(self.n_last_strategies)}
        sizes["customer_act"] = len(CUSTOMER_ACTS)
        stops = np.cumsum(list(sizes.values())).tolist()
        return {name: (stop - size, stop) for (name, size), stop in zip(sizes.items(), stops, strict=True)}

    @property
    def observation_size(self) -> int:
        """D."""
        return max(stop for _, stop in self.columns.values())


@dataclass(frozen=True)
class Utterances:
    """The utterances of some dialogues, one dialogue after the other, in order of time."""

    vectors: NDArray[np.float16]
    """(U, d). float16 in logs and live alike, so that both make the same observation."""
    customer_act: NDArray[np.int64]
    """(U,) position in CUSTOMER_ACTS of what a customer's utterance does, NO_ACT for an agent's."""

    @property
    def is_customer(self) -> Bool1D:
        """(U,)"""
        return np.asarray(self.customer_act != NO_ACT)


@dataclass(frozen=True)
class DecisionPoints:
    """M moments in dialogues at which an agent turn is to be decided."""

    first_utterance: Int1D
    """(M,) where the dialogue of the decision begins in `Utterances`."""
    n_before: Int1D
    """(M,) how many of its utterances were said before the decision; later ones are never read."""
    segment: Int1D
    """(M,) id, UNKNOWN_SEGMENT for an unknown one."""
    last_strategies: NDArray[np.int64]
    """(M, n_last) ids of the agent's last strategies, the latest first, NO_STRATEGY where there are fewer."""


def dialogue_state(layout: StateLayout, utterances: Utterances, points: DecisionPoints) -> NDArray[np.float32]:
    """(M, D) observations. Nothing that was said after a decision enters its row."""
    state = np.zeros((len(points.first_utterance), layout.observation_size), dtype=np.float32)
    part = {name: state[:, start:stop] for name, (start, stop) in layout.columns.items()}
    start, stop = points.first_utterance, points.first_utterance + points.n_before
    part["agent_mean"][:], n_agent = _means_before(utterances, ~utterances.is_customer, start, stop)
    part["customer_mean"][:], n_customer = _means_before(utterances, utterances.is_customer, start, stop)
    latest = _latest_customer(utterances.is_customer, start, stop)
    answered = np.flatnonzero(latest >= 0)
    part["last_customer"][answered] = utterances.vectors[latest[answered]]
    part["turn"][:, 0] = n_agent / layout.turn_limit
    part["turn"][:, 1] = np.maximum(layout.turn_limit - n_agent, 0) / layout.turn_limit
    part["turn"][:, 2] = n_customer / layout.turn_limit
    part["turn"][:, 3] = np.log1p(points.n_before)
    segment = np.where(points.segment == UNKNOWN_SEGMENT, layout.n_segments, points.segment)
    part["segment"][np.arange(len(state)), segment] = 1
    for k in range(layout.n_last_strategies):
        known = np.flatnonzero(points.last_strategies[:, k] != NO_STRATEGY)
        part[f"last_strategy_{k + 1}"][known, points.last_strategies[known, k]] = 1
    part["customer_act"][answered, utterances.customer_act[latest[answered]]] = 1
    return state


def eligibility_mask(catalogue: ActionCatalogue, eligible: Iterable[Sequence[str] | None]) -> Bool2D:
    """(B, A) the selectable actions among the eligible names; all selectable ones for None."""
    rows = [
        catalogue.selectable
        if names is None
        else np.isin(np.arange(len(catalogue)), [catalogue.ids[n] for n in names if n in catalogue.ids])
        for names in eligible
    ]
    return np.array(rows, dtype=bool).reshape(-1, len(catalogue)) & catalogue.selectable


def act_id(act: str) -> int:
    """Position of an act in CUSTOMER_ACTS; an act outside it counts as the last one, `other`."""
    return _ACT_IDS.get(act, len(CUSTOMER_ACTS) - 1)


_ACT_IDS = {act: position for position, act in enumerate(CUSTOMER_ACTS)}


def legal_actions(catalogue: ActionCatalogue, logged_mask: Bool2D, rules: Rules | None = None) -> Bool2D:
    """(B, A) `action_mask`: what was eligible, under today's rules; the fallback is always legal."""
    mask = logged_mask & catalogue.selectable
    if rules is not None:
        mask = mask & rules(mask)
    mask[:, catalogue.fallback] = True
    return mask


def action_of(catalogue: ActionCatalogue, labels: Iterable[str] | None) -> int:
    """The id of an agent turn's action: the selectable label with the best priority, ties to the earliest.

    NO_STRATEGY for a turn without one.
    """
    ids = [catalogue.ids[label] for label in labels or () if label in catalogue.ids]
    selectable = [i for i in ids if catalogue.selectable[i]]
    return min(selectable, key=lambda i: catalogue.strategies[i].priority, default=NO_STRATEGY)


@dataclass(frozen=True, eq=False)
class DialogueEncoder:
    """Live contexts → observations and legal actions, exactly as in the data set it is stored with."""

    encoder: Encoder
    catalogue: ActionCatalogue
    segments: tuple[str, ...]
    turn_limit: int
    n_last_strategies: int
    scrubber: Scrubber = field(default_factory=lambda: scrubber_for(ScrubbingSettings()))

    @cached_property
    def layout(self) -> StateLayout:
        """Where each feature is."""
        return StateLayout(
            self.encoder.dimensions,
            len(self.segments),
            len(self.catalogue),
            self.turn_limit,
            self.n_last_strategies,
        )

    def observe(
        self, contexts: Sequence[DialogueContext], rules: Rules | None = None, with_past: bool = False
    ) -> tuple[Observations, Bool2D]:
        """Observations (with history) and the (B, A) mask of legal actions of B contexts.

        With `with_past`, also the decisions before: one for each agent turn that has a strategy, as in the data set.

        Texts are scrubbed as ingest does it before they are encoded. With the static encoder the state equals
        the data set's row of the same dialogue prefix; with MiniLM to about 1e-3, since its vectors vary in
        the last digits with the batch they are encoded in.
        """
        turns = [turn for context in contexts for turn in context.turns]
        lengths = np.array([len(context.turns) for context in contexts], dtype=np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        texts = [scrubbed.text for scrubbed in self.scrubber.scrub_all([turn.text for turn in turns])]
        vectors = self._vectors(texts)
        said = zip(turns, texts, strict=True)
        acts = [act_id(customer_act(text)) if turn.speaker == "customer" else NO_ACT for turn, text in said]
        utterances = Utterances(vectors, np.array(acts, dtype=np.int64))
        taken = [self._decisions(context) for context in contexts]
        segment = np.array([self._segment_id(context.segment) for context in contexts], dtype=np.int64)
        latest = self._latest([[action for _, action in decisions] for decisions in taken])
        state = dialogue_state(self.layout, utterances, DecisionPoints(offsets[:-1], lengths, segment, latest))
        past = self._past(utterances, offsets[:-1], segment, taken) if with_past else None
        eligible = eligibility_mask(self.catalogue, [context.eligible_strategies for context in contexts])
        return Observations(state, History(vectors, offsets), past), legal_actions(self.catalogue, eligible, rules)

    def save(self, folder: Path) -> None:
        """Write `dialogue.json` and the text encoder in `encoder/`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save(folder / ENCODER_FOLDER)
        self.scrubber.save_model(folder)
        write_json(
            folder / DIALOGUE_FILE,
            {
                "catalogue": self.catalogue.to_json(),
                "segments": list(self.segments),
                "turn_limit": self.turn_limit,
                "n_last_strategies": self.n_last_strategies,
                "customer_acts": list(CUSTOMER_ACTS),
                "encoder_id": self.encoder.encoder_id,
                "scrubber": self.scrubber.to_json(),
                "layout": self.layout.columns,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> DialogueEncoder:
        """The inverse of `save`. Raises DataError if a file is missing or its parts do not fit together."""
        stored = _read_dialogue_file(folder / DIALOGUE_FILE)
        encoder = cls(
            encoder=load_encoder(folder / ENCODER_FOLDER),
            catalogue=ActionCatalogue.from_json(stored["catalogue"]),
            segments=tuple(stored["segments"]),
            turn_limit=stored["turn_limit"],
            n_last_strategies=stored["n_last_strategies"],
            scrubber=Scrubber.from_json(stored.get("scrubber"), folder),
        )
        layout = {name: tuple(columns) for name, columns in stored["layout"].items()}
        acts = tuple(stored.get("customer_acts", ()))
        fits = layout == encoder.layout.columns and acts == CUSTOMER_ACTS
        if not fits or stored["encoder_id"] != encoder.encoder.encoder_id:
            raise DataError(
                f"{folder}: the observation's layout is not the one this version builds. Build the data set again."
            )
        return encoder

    def _vectors(self, texts: list[str]) -> NDArray[np.float16]:
        distinct = list(dict.fromkeys(texts))
        rows = {text: row for row, text in enumerate(distinct)}
        encoded = self.encoder.encode(distinct) if distinct else np.zeros((0, self.encoder.dimensions))
        return encoded.astype(np.float16)[[rows[text] for text in texts]]

    def _segment_id(self, name: str | None) -> int:
        return self.segments.index(name) if name in self.segments else UNKNOWN_SEGMENT

    def _decisions(self, context: DialogueContext) -> list[tuple[int, int]]:
        """Place among the turns, and action, of each agent turn that has a strategy."""
        agent = ((place, turn.strategies) for place, turn in enumerate(context.turns) if turn.speaker == "agent")
        actions = ((place, action_of(self.catalogue, labels)) for place, labels in agent)
        return [(place, action) for place, action in actions if action != NO_STRATEGY]

    def _latest(self, taken: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """(M, n_last) the last of the actions taken before each of M moments, the latest first."""
        latest = np.full((len(taken), self.n_last_strategies), NO_STRATEGY, dtype=np.int64)
        for row, actions in enumerate(taken):
            recent = actions[::-1][: self.n_last_strategies]
            latest[row, : len(recent)] = recent
        return latest

    def _past(
        self,
        utterances: Utterances,
        first_utterance: Int1D,
        segment: Int1D,
        taken: Sequence[Sequence[tuple[int, int]]],
    ) -> Past:
        """What was observed and done at the decisions `taken` in each of B dialogues."""
        counts = [len(decisions) for decisions in taken]
        places = np.array([place for decisions in taken for place, _ in decisions], dtype=np.int64)
        before = [[action for _, action in decisions[:n]] for decisions in taken for n in range(len(decisions))]
        points = DecisionPoints(
            np.repeat(first_utterance, counts), places, np.repeat(segment, counts), self._latest(before)
        )
        return Past(
            dialogue_state(self.layout, utterances, points),
            np.array([action for decisions in taken for _, action in decisions], dtype=np.int64),
            np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        )


def _means_before(
    utterances: Utterances, chosen: Bool1D, start: Int1D, stop: Int1D
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(M, d) mean of the chosen vectors in `start:stop`, and (M,) how many there are."""
    # Sums of thousands of dialogues are subtracted from each other: float64 keeps that exact to 1e-11.
    # Half precision is slow to multiply, hence the float32 in between (exact).
    sums = np.zeros((len(chosen) + 1, utterances.vectors.shape[1]))
    np.cumsum(utterances.vectors.astype(np.float32) * chosen[:, None], axis=0, dtype=np.float64, out=sums[1:])
    counts = np.concatenate(([0], np.cumsum(chosen))).astype(np.int64)
    n = counts[stop] - counts[start]
    return (sums[stop] - sums[start]) / np.maximum(n, 1)[:, None], n


def _latest_customer(is_customer: Bool1D, start: Int1D, stop: Int1D) -> NDArray[np.int64]:
    """(M,) position of the latest customer utterance in `start:stop`; -1 where there is none."""
    positions = np.where(is_customer, np.arange(len(is_customer)), -1)
    latest = np.concatenate(([-1], np.maximum.accumulate(positions)))[stop]
    return np.where(latest >= start, latest, -1)


def _read_dialogue_file(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Build the data set again; it stores the dialogue encoder.") from None
