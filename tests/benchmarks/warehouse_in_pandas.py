"""The warehouse once more, in pandas: the peer of the warehouse benchmark.

Here: landing → turns in their last arrival → steps → transitions → bounded exact cells, as a data scientist would write
them with whole columns. Not here: what the steps mean (`transforms`), data tests, incremental builds. One short cut in
pandas' favour: a customer's rows are chosen by pandas' own 64-bit hash, which costs less than SHA-256.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from orchestration.settings import TalktrackSettings

LAST_ARRIVAL = ["arrival_day", "source", "source_row"]
TURN_COLUMNS = [
    "dialogue_id", "turn_index", "occurred_at", "speaker", "content_hash", "customer_id", "segment", "channel",
    "locale", "strategies", "eligible_strategies", "propensity", "policy_version", "item_ids", "candidate_item_ids",
    "item_propensity", "is_synthetic", "customer_act", "canonical_reply", "source", "source_row",
]  # fmt: skip
DECIDED = ["strategy", "probability", "policy_version", "eligible_strategies", "stage"]
CELL = ["aggregate_bucket", "strategy"]


def build(landing: Path, catalogue: Path, n_days: int, settings: TalktrackSettings) -> dict[str, pd.DataFrame]:
    """Marts and exact cells of the first `n_days` arrival days, by name."""
    turns = _last_arrivals(_read(landing, "turns", n_days, TURN_COLUMNS), ["dialogue_id", "turn_index"])
    turns["dialogue_day"] = turns.groupby("dialogue_id", sort=False)["occurred_at"].transform("first").dt.date
    is_customer = turns["speaker"] == "customer"
    by_dialogue = turns.groupby("dialogue_id", sort=False)
    turns["n_customer_turns_so_far"] = is_customer.astype("int32").groupby(turns["dialogue_id"], sort=False).cumsum()
    turns["last_customer_act"] = by_dialogue["customer_act"].ffill()
    turns["next_customer_act"] = by_dialogue["customer_act"].bfill()
    turns["next_reply"] = turns["canonical_reply"].where(~is_customer | turns["canonical_reply"].notna(), "")
    turns["next_reply"] = turns.groupby("dialogue_id", sort=False)["next_reply"].bfill()
    steps = _steps(turns[~is_customer], _read(landing, "decisions", n_days), pd.read_csv(catalogue))
    dialogues = _dialogues(turns, steps, landing, n_days, settings)
    transitions = _transitions(steps, dialogues)
    bounded = _bounded_steps(transitions, dialogues, settings)
    return {
        "fct_turns": turns[["dialogue_id", "turn_index", "speaker", "content_hash", "occurred_at", "dialogue_day"]],
        "fct_dialogues": dialogues,
        "fct_transitions": transitions,
        **_exact_cells(bounded, settings),
    }


def _read(landing: Path, kind: str, n_days: int, columns: list[str] | None = None) -> pd.DataFrame:
    folders = sorted((landing / kind).glob("arrival_day=*"))[:n_days]
    parts = [
        pd.read_parquet(file, columns=columns, partitioning=None).assign(arrival_day=folder.name[-10:])
        for folder in folders
        for file in sorted(folder.glob("*.parquet"))
    ]
    return pd.concat(parts, ignore_index=True)


def _last_arrivals(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    rows = rows.sort_values([*keys, *LAST_ARRIVAL])
    return rows.drop_duplicates(keys, keep="last").reset_index(drop=True)


def _steps(agent_turns: pd.DataFrame, decisions: pd.DataFrame, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Agent turns with their action: the decision's, else the selectable label of best priority."""
    labels = agent_turns[["dialogue_id", "turn_index", "strategies"]].explode("strategies")
    labels = labels.merge(
        catalogue[["strategy", "priority", "role", "strategy_id"]], left_on="strategies", right_on="strategy"
    )
    labels = labels[labels["role"].isin(["selectable", "fallback"])].sort_values("priority", kind="stable")
    labels = labels.drop_duplicates(["dialogue_id", "turn_index"])
    steps = agent_turns.merge(
        labels[["dialogue_id", "turn_index", "strategy"]], how="left", on=["dialogue_id", "turn_index"]
    )
    decisions = _last_arrivals(decisions, ["dialogue_id", "turn_index"])
    steps = steps.merge(
        decisions[["dialogue_id", "turn_index", *DECIDED]],
        how="left",
        on=["dialogue_id", "turn_index"],
        suffixes=("", "_decided"),
    )
    is_decided = steps["strategy_decided"].notna()
    steps["propensity"] = steps["propensity"].where(~is_decided, steps["probability"])
    for column in ("strategy", "policy_version", "eligible_strategies"):
        steps[column] = steps[column].where(~is_decided, steps[f"{column}_decided"])
    steps = steps[steps["strategy"].notna()].reset_index(drop=True)
    steps["strategy_id"] = steps["strategy"].map(catalogue.set_index("strategy")["strategy_id"])
    by_dialogue = steps.groupby("dialogue_id", sort=False)
    steps["step_index"] = by_dialogue.cumcount()
    steps["previous_strategy"] = by_dialogue["strategy"].shift()
    steps["is_last_step"] = ~steps.duplicated("dialogue_id", keep="last")
    steps["item_id"] = steps["item_ids"].str[0]
    return steps


def _dialogues(
    turns: pd.DataFrame, steps: pd.DataFrame, landing: Path, n_days: int, settings: TalktrackSettings
) -> pd.DataFrame:
    """One row per dialogue: its turns, attributed outcomes, maturity, number of steps."""
    attribution = pd.Timedelta(days=settings.logs.attribution_days)
    dialogues = turns.groupby("dialogue_id", sort=False).agg(
        customer_id=("customer_id", "first"),
        n_customers=("customer_id", "nunique"),
        segment=("segment", "first"),
        channel=("channel", "first"),
        locale=("locale", "first"),
        started_at=("occurred_at", "first"),
        last_turn_at=("occurred_at", "max"),
        n_turns=("turn_index", "size"),
        n_customer_turns=("n_customer_turns_so_far", "max"),
        is_synthetic=("is_synthetic", "max"),
        dialogue_day=("dialogue_day", "first"),
    )
    outcomes = _last_arrivals(_read(landing, "outcomes", n_days), ["dialogue_id", "kind", "occurred_at"])
    outcomes = outcomes.join(dialogues["last_turn_at"], on="dialogue_id", how="inner")
    outcomes = outcomes[outcomes["occurred_at"] <= outcomes["last_turn_at"] + attribution]
    conversions = outcomes[outcomes["kind"] == "conversion"].groupby("dialogue_id")["value"]
    dialogues["has_conversion"] = conversions.size().reindex(dialogues.index).fillna(0) > 0
    dialogues["conversion_value"] = conversions.sum().reindex(dialogues.index).fillna(0.0)
    clock = pd.Timestamp(turns["arrival_day"].max(), tz="UTC") + pd.Timedelta(days=1)
    dialogues["is_mature"] = dialogues["last_turn_at"] + attribution <= clock
    dialogues["is_incomplete"] = dialogues.index.isin(_read(landing, "incomplete", n_days)["dialogue_id"])
    dialogues["n_steps"] = steps.groupby("dialogue_id").size().reindex(dialogues.index).fillna(0)
    dialogues["is_usable"] = dialogues["is_mature"] & ~dialogues["is_incomplete"] & (dialogues["n_steps"] > 0)
    return dialogues.reset_index()


def _transitions(steps: pd.DataFrame, dialogues: pd.DataFrame) -> pd.DataFrame:
    """Steps with rewards, ends and state buckets."""
    whole = dialogues[
        ["dialogue_id", "customer_id", "is_mature", "has_conversion", "conversion_value", "n_customer_turns"]
    ]
    rows = steps.drop(columns="customer_id").merge(whole, on="dialogue_id")
    following = rows.groupby("dialogue_id", sort=False)["n_customer_turns_so_far"].shift(-1)
    rows["is_answered"] = following.fillna(rows["n_customer_turns"]) > rows["n_customer_turns_so_far"]
    rows["reward_conversion_value"] = rows["conversion_value"].where(rows["is_last_step"], 0.0)
    rows["reward_conversion"] = (rows["is_last_step"] & rows["has_conversion"]).astype(float)
    rows["reward_engagement"] = rows["is_answered"].astype(float)
    rows["reward"] = rows["reward_conversion_value"]
    rows["is_terminated"] = rows["is_last_step"] & rows["is_mature"]
    rows["is_truncated"] = rows["is_last_step"] & ~rows["is_mature"]
    bands = np.array(["1", "2-3", "4-7", "8+"])
    rows["band"] = bands[np.searchsorted([2, 4, 8], rows["step_index"].to_numpy() + 1, side="right")]
    rows["state_bucket"] = (
        rows["band"]
        + "|" + rows["previous_strategy"].fillna("start")
        + "|" + rows["segment"].fillna("any")
        + "|" + rows["last_customer_act"].fillna("none")
    )  # fmt: skip
    return rows


def _bounded_steps(transitions: pd.DataFrame, dialogues: pd.DataFrame, settings: TalktrackSettings) -> pd.DataFrame:
    """Steps that may enter the exact cells, with their bucket and the next one."""
    is_in = dialogues["is_usable"] & (dialogues["n_customers"] == 1)
    share = pd.util.hash_array(dialogues["customer_id"].to_numpy(dtype=object)) / 2**64
    kept = dialogues["dialogue_id"][is_in & (share >= settings.dataset.validation_share)]
    steps = transitions[transitions["dialogue_id"].isin(kept)].copy()
    steps["aggregate_bucket"] = steps["state_bucket"]
    ending = steps["has_conversion"].map({True: "converted", False: "ended"})
    steps["next_bucket"] = steps.groupby("dialogue_id", sort=False)["aggregate_bucket"].shift(-1).fillna(ending)
    low, high = settings.privacy.reward_low * 1000, settings.privacy.reward_high * 1000
    steps["reward_milli"] = (steps["reward"] * 1000).round().clip(low, high).astype("int64")
    return steps


def _exact_cells(steps: pd.DataFrame, settings: TalktrackSettings) -> dict[str, pd.DataFrame]:
    """Sums over customers, each of whom enters at most `max_cells` cells of a table once."""
    most = settings.privacy.max_cells
    drawn = steps.assign(draw=pd.util.hash_pandas_object(steps[["dialogue_id", "step_index"]], index=False))
    drawn = drawn.sort_values("draw").drop_duplicates(["customer_id", *CELL])
    cells = (
        _first_cells(drawn, CELL, most)
        .groupby(CELL)
        .agg(
            n_customers=("customer_id", "size"),
            n_conversions=("has_conversion", "sum"),
            reward_milli=("reward_milli", "sum"),
        )
    )
    following = [*CELL, "next_bucket"]
    moves = _first_cells(steps.drop_duplicates(["customer_id", *following]), following, most)
    said = steps[steps["is_answered"]]
    acts = said[["customer_id", "aggregate_bucket"]].assign(reply=said["next_customer_act"], reply_kind="act")
    texts = said[["customer_id"]].assign(
        reply=said["next_reply"], reply_kind="text", aggregate_bucket="any|any|any|any"
    )
    replies = pd.concat([acts[acts["reply"].notna()], texts[texts["reply"].fillna("") != ""]])
    reply = ["reply_kind", "aggregate_bucket", "reply"]
    replies = _first_cells(replies.drop_duplicates(["customer_id", *reply]), reply, most, within=["reply_kind"])
    return {
        "exact_cells": cells.reset_index(),
        "exact_transitions": moves.groupby(following).size().reset_index(name="n_steps"),
        "exact_replies": replies.groupby(reply).size().reset_index(name="n_customers"),
    }


def _first_cells(rows: pd.DataFrame, key: list[str], most: int, within: list[str] | None = None) -> pd.DataFrame:
    """Of every customer, the rows of `most` cells in the order of a hash."""
    order = pd.util.hash_pandas_object(rows[["customer_id", *key]], index=False)
    rows = rows.assign(order=order).sort_values("order")
    return rows[rows.groupby(["customer_id", *(within or [])], sort=False).cumcount() < most]
