"""Contributions of customers: bounded, of their own rows alone, of the held-out ones only."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rl.evaluation.private_contributions as module
from rl.datasets.transitions import TransitionSet
from rl.errors import DataError
from rl.evaluation.private_contributions import (
    SHARES,
    Bounds,
    customer_contributions,
    private_sums,
    with_clips,
)
from rl.policies.bucketed import BucketedPolicy
from rl.settings import PrivateEvaluationSettings
from tests.studies.aggregate_world import parts_of, storefront_set

BOUNDS = Bounds(return_low=0.0, return_high=150.0, center=20.0)
SETTINGS = PrivateEvaluationSettings(weight_clip=3.0, advantage_clip=50.0)
LOG = storefront_set(400, 5)


def policy_of(dataset: TransitionSet, seed: int = 0) -> BucketedPolicy:
    rng = np.random.default_rng(seed)
    buckets = [f"{band}|any|any|any" for band in ("1", "2-3", "4+")]
    n = dataset.n_actions
    behavior = rng.dirichlet(np.ones(n), size=len(buckets)).astype(np.float32)
    q_values = rng.normal(10, 5, size=(12, len(buckets), n)).astype(np.float32)
    return BucketedPolicy(buckets, parts_of(dataset), behavior, q_values, 5.0, "aggregate_q")


POLICY = policy_of(LOG)


def sums_of(dataset: TransitionSet, policy: BucketedPolicy = POLICY) -> np.ndarray:
    return np.array(private_sums(dataset, policy, SETTINGS, BOUNDS).sums, dtype=np.int64)


def without(dataset: TransitionSet, customer: int) -> TransitionSet:
    return dataset.select(dataset.customer_index != customer)


def held_out(dataset: TransitionSet) -> np.ndarray:
    return np.unique(dataset.customer_index[dataset.validation])


@given(place=st.integers(0, 10_000), scale=st.floats(0, 1e6), seed=st.integers(0, 3))
@settings(max_examples=40)
def test_one_customer_moves_the_exact_sums_by_no_more_than_the_certified_bound(
    place: int, scale: float, seed: int
) -> None:
    """With rewards blown up, propensities down to 1e-6 and any policy: what is cut is cut before it is summed."""
    customers = held_out(LOG)
    customer = int(customers[place % len(customers)])
    propensities = np.where(np.arange(LOG.n_steps) % 3 == 0, 1e-6, LOG.propensities).astype(np.float32)
    wild = replace(LOG, rewards=(LOG.rewards * scale).astype(np.float32), propensities=propensities)
    policy = policy_of(LOG, seed)
    certified = private_sums(wild, policy, SETTINGS, BOUNDS).l2
    moved = np.linalg.norm((sums_of(wild, policy) - sums_of(without(wild, customer), policy)).astype(float))

    assert 0 < moved <= certified


def test_every_other_customer_contributes_the_same_with_and_without_one() -> None:
    judges = LOG.held_out()
    gone = int(np.unique(judges.customer_index)[7])
    kept = np.unique(judges.customer_index) != gone
    full = customer_contributions(judges, POLICY, SETTINGS, BOUNDS)
    rest = customer_contributions(without(judges, gone), POLICY, SETTINGS, BOUNDS)

    assert tuple(full) == tuple(SHARES)
    for name, values in full.items():
        np.testing.assert_allclose(values[kept], rest[name], err_msg=name)


@pytest.mark.parametrize(
    "fault", ["no clip of the difference", "weights normalised over customers", "dialogues added up"]
)
def test_the_bound_catches_planted_faults(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module.customer_contributions

    def faulty(judges, policy, chosen, bounds):  # type: ignore[no-untyped-def]
        found = dict(honest(judges, policy, chosen, bounds))
        if fault == "no clip of the difference":
            found["advantage"] = found["advantage"] * 40
        elif fault == "weights normalised over customers":
            found["advantage"] = found["advantage"] * len(found["weight"]) / found["weight"].sum() ** 0.5
        else:
            found["logged"] = np.full(len(found["logged"]), found["logged"].sum())
        return found

    monkeypatch.setattr(module, "customer_contributions", faulty)
    monkeypatch.setattr(module, "_summed", lambda values, bound, level: int(np.rint(values / bound * level).sum()))
    certified = private_sums(LOG, POLICY, SETTINGS, BOUNDS).l2
    moved = [np.linalg.norm((sums_of(LOG) - sums_of(without(LOG, int(c)))).astype(float)) for c in held_out(LOG)[:40]]
    assert max(moved) > certified


def test_training_customers_and_customers_without_a_name_count_for_nothing() -> None:
    exact = sums_of(LOG)
    assert (sums_of(LOG.held_out()) == exact).all()

    named = LOG.is_customer_known & (LOG.customer_index != held_out(LOG)[0])
    nameless = replace(LOG, is_customer_known=named)
    assert (sums_of(nameless) == sums_of(without(LOG, int(held_out(LOG)[0])))).all()


def test_dialogues_outside_the_release_window_count_for_nothing() -> None:
    inside = private_sums(LOG, POLICY, SETTINGS, BOUNDS, ("2026-01-01", "2026-01-29"))
    assert inside.sums == tuple(sums_of(LOG))
    half = private_sums(LOG, POLICY, SETTINGS, BOUNDS, ("2026-01-01", "2026-01-15"))
    assert 0 < half.sums[0] < inside.sums[0]
    with pytest.raises(DataError, match="No held-out dialogue of the release's window"):
        private_sums(LOG, POLICY, SETTINGS, BOUNDS, ("2027-01-01", "2027-01-29"))


def test_a_policy_that_does_what_the_log_did_is_worth_what_the_log_was() -> None:
    judges = LOG.held_out()
    behavior = POLICY.reading(parts_of(judges)).behavior_probabilities(judges.observations, judges.action_mask)
    same = np.take_along_axis(behavior, judges.actions[:, None], axis=1)[:, 0]
    calm = BucketedPolicy(POLICY.buckets, POLICY.parts, POLICY.behavior, POLICY.q_values * 0, 1.0, "same")
    log = replace(judges, propensities=same.astype(np.float32))
    found = customer_contributions(log, calm, SETTINGS, BOUNDS)

    np.testing.assert_allclose(found["advantage"], 0, atol=1e-3)
    np.testing.assert_allclose(found["weight"], 1, atol=1e-5)
    assert found["estimated"].max() == 0


def test_missing_propensities_are_stood_in_for_by_the_released_behavior_and_counted() -> None:
    unknown = replace(LOG, propensities=np.full(LOG.n_steps, np.nan, dtype=np.float32))
    found = customer_contributions(unknown.held_out(), POLICY, SETTINGS, BOUNDS)
    assert found["estimated"].min() == 1


def test_clips_widen_with_the_number_of_judges_and_stay_where_they_are_set() -> None:
    few, many = (with_clips(PrivateEvaluationSettings(), BOUNDS, n).clips for n in (3_000, 300_000))
    assert 100 < few.advantage < 250 < many.advantage
    assert 3 < few.weight < 8 < many.weight
    assert with_clips(SETTINGS, BOUNDS, 1e6).clips == SETTINGS.clips
