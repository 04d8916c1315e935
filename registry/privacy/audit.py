"""Attacks on our own releases: how much of the claimed loss can an attacker measure?

Here: the attacks and their statistics, over the functions that are handed in. Not here: noise (`mechanisms`), what is
claimed (`accounting`), logs with canaries in them (tests).

A measured ε is a lower bound: above the claim it proves a fault, below it proves nothing. So each attack is also
tried on planted faults, which it must catch, and the two-world audit must reach half of a correct claim.

===================  ==================================  =====================================================
attack               what it looks at                    catches
===================  ==================================  =====================================================
`sampler_fit`        the noise alone                     a sampler that is not the discrete Gaussian it says
`threshold_leaks`    keys of one customer                a threshold that lets them out more often than δ
`two_worlds`         all noise of a release, one         too little noise: wrong sensitivity, wrong budget
                     customer at the bound in or out
`one_run`            a whole path with many canaries     contributions that are not bounded before the noise
===================  ==================================  =====================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow.compute as pc

from registry.privacy.grid import CONVERTED, Grid
from registry.privacy.mechanisms import NoisyHistogram
from registry.privacy.plan import MILLI, ReleasePlan
from registry.privacy.settings import UNIT_OF_PRIVACY
from registry.privacy.tables import REPLY_ACT, REPLY_TEXT, AlignedTables, NoisyTables, draw
from rl.errors import SettingsError
from rl.types import Bool1D, Float1D, Int1D

CONFIDENCE = 0.999
"""Of all intervals here. In a nightly run a correct release at its claim would fail at most about once in 1,000
nights."""

_OTHER_CUSTOMERS = 1_000_000
"""Who share each reply text with the customer of the two worlds, so that the threshold hides none of them."""

_RUNS_AT_ONCE = 5_000
"""Of the two worlds: 120,000 rows of transitions at eight cells a customer."""


@dataclass(frozen=True)
class Proportion:
    """A share that was counted, with the Clopper-Pearson interval of each side."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TwoWorlds:
    """Scores of an attacker who sees a release with and without one customer."""

    without: Float1D
    """(N,) log-likelihood ratio of each release from which the customer is absent."""
    within: Float1D
    """(N,) the same, with the customer in."""
    midpoint: float
    """Score above which the customer is more likely in than out."""


@dataclass(frozen=True)
class MeasuredEpsilon:
    """Lower bounds of ε that two worlds show."""

    assumption_free: float
    """From the counted error rates alone (Clopper-Pearson)."""
    gaussian: float
    """From the error rates, if the trade-off between them is that of two Gaussians, as it is for our noise."""
    claimed: float
    delta: float
    confidence: float

    @property
    def holds(self) -> bool:
        """Nothing was measured above the claim."""
        return max(self.assumption_free, self.gaussian) <= self.claimed

    @property
    def bites(self) -> bool:
        """The attack is strong enough to see half of the claim, so that its silence means something."""
        return self.gaussian > self.claimed / 2


@dataclass(frozen=True)
class OneRun:
    """What one run with many canaries shows."""

    epsilon: float
    """Lower bound at the asked confidence."""
    auc: float
    """Probability that a canary that is in scores above one that is out; 0.5 is blind."""
    auc_standard_error: float
    """At most this, whatever the scores (Birnbaum and Klose, 1957)."""
    n_canaries: int


def sampler_fit(draws: Int1D, sigma: float) -> float:
    """Chi-square p-value of draws around zero against the discrete Gaussian of scale `sigma`.

    It found the sampler of opendp 0.14.1 biased at p 3e-74 with 400,000 draws (σ 20). A correct sampler falls below
    1e-6 about once in a million runs.
    """
    from scipy import stats

    reach, width = math.ceil(12 * sigma), max(1, int(sigma / 20))
    n_bins = 2 * reach // width + 1
    bins = np.arange(2 * reach + 1) // width
    expected = len(draws) * np.bincount(bins, weights=_masses(sigma, reach), minlength=n_bins)
    observed = np.bincount((np.clip(draws, -reach, reach) + reach) // width, minlength=n_bins)
    # Bins of fewer than 20 are added to the outermost ones: chi-square is not exact there.
    inside = np.flatnonzero(expected >= 20)
    edges = np.r_[0, inside[1:]]
    expected, observed = np.add.reduceat(expected, edges), np.add.reduceat(observed, edges)
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(edges) - 1))


def threshold_leaks(
    draw: Callable[[Mapping[str, int]], NoisyHistogram], *, l0: int, n_customers: int, confidence: float = CONFIDENCE
) -> Proportion:
    """Share of customers of whom a key that nobody else has passes the threshold; δ says how many may.

    Parameters
    ----------
    draw : callable
        The release's histogram, as a function of customers per key.
    l0 : int
        Keys of each customer, at the bound.
    n_customers : int
        Customers; the share is resolved to about one over this.
    """
    noisy = draw({f"{customer}|{key}": 1 for customer in range(n_customers) for key in range(l0)})
    exposed = {key.partition("|")[0] for key in noisy.counts}
    return _proportion(len(exposed), n_customers, confidence)


def threshold_delta(sigma: float, tau: int, l0: int) -> float:
    """Exact probability that any of a customer's `l0` keys, which nobody else has, comes out at `tau` or above."""
    reach = max(tau, math.ceil(40 * sigma))
    one_key = float(_masses(sigma, reach)[reach + tau - 1 :].sum())
    return -math.expm1(l0 * math.log1p(-one_key))


def canary_plan(plan: ReleasePlan, n_canaries: int, n_cells: int) -> ReleasePlan:
    """The plan with a grid of reserved cells in place of its own: `n_cells` for each canary, which nobody else enters.

    Strategies, acts of replies and texts are all called `canary_name(canary, cell)`; a canary's steps end in
    conversions. Measures and noise are the plan's own.
    """
    names = tuple(canary_name(canary, cell) for canary in range(n_canaries) for cell in range(n_cells))
    grid = Grid(level="turn", turn_edges=(1,), strategies=names, segments=(), customer_acts=names)
    return replace(plan, grid=grid)


def canary_name(canary: int, cell: int) -> str:
    """Name of a reserved cell; names sort like the numbers."""
    return f"canary {canary:07d} {cell:04d}"


def canary_scores(noisy: NoisyTables, plan: ReleasePlan, n_canaries: int) -> Float1D:
    """How much each canary looks as if it were in, from what was drawn with its `canary_plan`.

    The score is the log-likelihood ratio less a constant: each noisy cell counts with L∞ / σ². No attacker who sees
    only the noisy cells does better.
    """
    scores = np.zeros(n_canaries)
    for name, cells in _canary_cells(noisy, len(plan.grid.strategies)).items():
        weight = plan.measure(name).linf / noisy.sigmas[name] ** 2
        scores += weight * cells.reshape(n_canaries, -1).sum(axis=1)
    texts = _replies(noisy, REPLY_TEXT)
    owners = np.array([int(text.split()[1]) for text in texts["reply"].to_pylist()], dtype=np.int64)
    weight = plan.measure("reply_texts").linf / noisy.sigmas["reply_texts"] ** 2
    np.add.at(scores, owners, weight * texts["n_customers"].to_numpy())
    return scores


def draw_canaries(aligned: AlignedTables, plan: ReleasePlan) -> NoisyTables:
    """Draw a release of canaries. It is never kept, so it is booked nowhere: canaries are nobody."""
    return draw(
        aligned,
        plan,
        {
            "release_id": "audit",
            "window_start": date.min,
            "window_end": date.min,
            "unit_of_privacy": UNIT_OF_PRIVACY,
            "rho": plan.cost.rho,
            "delta": plan.cost.delta,
            "minimum_customers": plan.settings.minimum_customers,
            "shrinkage": plan.settings.shrinkage,
        },
    )


def two_worlds(plan: ReleasePlan, n_runs: int) -> TwoWorlds:
    """Draw `n_runs` releases without and with one customer who adds L∞ to L0 cells of every measure.

    Thousands of runs lie side by side in one table that the release's own code draws: what is audited is the noise,
    its scale and its use, as `plan` and `tables` have them.
    """
    sizes = [min(_RUNS_AT_ONCE, n_runs - start) for start in range(0, n_runs, _RUNS_AT_ONCE)]
    blocks = [_side_by_side(plan, size) for size in sizes]
    return TwoWorlds(
        without=np.concatenate([block.without for block in blocks]),
        within=np.concatenate([block.within for block in blocks]),
        midpoint=blocks[0].midpoint,
    )


def measured_epsilon(
    worlds: TwoWorlds, *, claimed: float, delta: float, confidence: float = CONFIDENCE
) -> MeasuredEpsilon:
    """What the scores of two worlds prove about ε at this δ, each bound at this confidence."""
    return MeasuredEpsilon(
        assumption_free=_assumption_free(worlds, delta, confidence),
        gaussian=_gaussian(worlds, delta, confidence),
        claimed=claimed,
        delta=delta,
        confidence=confidence,
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε at this δ of telling N(0, 1) from N(μ, 1) (Dong, Roth and Su, 2019, arXiv:1905.02383, corollary 1)."""
    from scipy import optimize, special

    if mu <= 0:
        return 0.0

    def excess(epsilon: float) -> float:
        miss = special.ndtr(-epsilon / mu + mu / 2)
        return float(miss - np.exp(epsilon + special.log_ndtr(-epsilon / mu - mu / 2)) - delta)

    if excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, mu * (mu / 2 + 40)))


def one_run(scores: Float1D, is_in: Bool1D, *, delta: float, confidence: float = CONFIDENCE) -> OneRun:
    """Lower bound of ε from one release with canaries, each of which is in by the toss of a coin.

    Parameters
    ----------
    scores : (M,)
        How much each canary looks as if it were in.
    is_in : (M,)
        Whether it was.
    delta : float
        Of the claim.

    Notes
    -----
    The top r are guessed in and the bottom r out; the rest is left open. With v of 2r right, ε is the largest for
    which P[Binomial(2r, e^ε / (1 + e^ε)) ≥ v] stays below the error less 2Mδ, shared by the r that are tried.

    Source: Steinke, Nasr and Jagielski (2023), "Privacy Auditing with One (1) Training Run", arXiv:2305.08846.
    """
    error = 1 - confidence - 2 * len(scores) * delta
    if error <= 0:
        raise SettingsError(
            f"{len(scores)} canaries at delta {delta:g} prove nothing at {confidence:.2%} confidence: "
            "2 x canaries x delta must stay below the error. State the claim at a smaller delta."
        )
    ranked = np.asarray(is_in, dtype=bool)[np.argsort(-np.asarray(scores), kind="stable")]
    tried = [r for r in (len(ranked) // 2**halvings for halvings in range(1, 12)) if r >= 8]
    bounds = [_binomial_epsilon(int(ranked[:r].sum() + (~ranked[-r:]).sum()), 2 * r, error / len(tried)) for r in tried]
    n_in = int(ranked.sum())
    return OneRun(
        epsilon=max(bounds, default=0.0),
        auc=auc(np.asarray(scores), np.asarray(is_in, dtype=bool)),
        auc_standard_error=0.5 / math.sqrt(max(min(n_in, len(ranked) - n_in), 1)),
        n_canaries=len(ranked),
    )


def auc(scores: Float1D, is_in: Bool1D) -> float:
    """Share of pairs of one who is in and one who is out that the scores put in this order; ties count half."""
    from scipy import stats

    n_in = int(is_in.sum())
    n_out = len(is_in) - n_in
    ranks = stats.rankdata(scores)[is_in].sum() - n_in * (n_in + 1) / 2
    return float(ranks / (n_in * n_out)) if n_in and n_out else 0.5


def _side_by_side(plan: ReleasePlan, n_runs: int) -> TwoWorlds:
    """Scores of `n_runs` releases without and with the customer."""
    n_cells = max(measure.l0 for measure in plan.measures)
    many = canary_plan(plan, n_runs, n_cells)
    absent, present = (draw_canaries(_world(many, n_cells, is_in=is_in), many) for is_in in (False, True))
    texts = plan.measure("reply_texts")
    of_others = n_cells * _OTHER_CUSTOMERS * texts.linf / absent.sigmas["reply_texts"] ** 2
    information = sum(measure.l0 * (measure.linf / absent.sigmas[measure.name]) ** 2 for measure in plan.measures)
    without, within = (canary_scores(noisy, many, n_runs) - of_others for noisy in (absent, present))
    return TwoWorlds(without, within, information / 2)


def _world(plan: ReleasePlan, n_cells: int, *, is_in: bool) -> AlignedTables:
    """Exact tables that hold, in every run, the customer at the bound or nobody."""
    grid = plan.grid
    position = np.arange(len(grid.strategies)) % n_cells

    def sums(name: str) -> Int1D:
        measure = plan.measure(name)
        return np.where((position < measure.l0) & is_in, measure.linf, 0).astype(np.int64)

    followed_by = [following for _, _, following in grid.transitions()]
    n_steps = np.zeros(len(followed_by), dtype=np.int64)
    n_steps[np.array(followed_by) == CONVERTED] = sums("transitions")
    n_replies = np.zeros(grid.n_replies, dtype=np.int64)
    n_replies[: len(position)] = sums("replies")
    return AlignedTables(
        n_steps=n_steps,
        n_customers=sums("customers"),
        n_conversions=sums("conversions"),
        reward_milli=sums("rewards"),
        n_replies=n_replies,
        reply_texts=dict(zip(grid.strategies, (_OTHER_CUSTOMERS + sums("reply_texts")).tolist(), strict=True)),
    )


def _canary_cells(noisy: NoisyTables, n_cells: int) -> dict[str, Float1D]:
    """Noisy cells of each measure with public keys, canary by canary, as they were summed."""
    transitions, cells = noisy.tables["transitions"], noisy.tables["cells"]
    conversions = transitions.filter(pc.equal(transitions["next_bucket"], CONVERTED))
    return {
        "transitions": conversions["n_steps"].to_numpy(),
        "customers": cells["n_customers"].to_numpy(),
        "conversions": cells["n_conversions"].to_numpy(),
        "rewards": cells["reward"].to_numpy() * MILLI,
        # The act `other`, which the grid adds at the end, is nobody's.
        "replies": _replies(noisy, REPLY_ACT)["n_customers"].to_numpy()[:n_cells],
    }


def _replies(noisy: NoisyTables, kind: str) -> Any:
    replies = noisy.tables["replies"]
    return replies.filter(pc.equal(replies["reply_kind"], kind))


def _masses(sigma: float, reach: int) -> Float1D:
    """Probabilities of −reach … reach under the discrete Gaussian."""
    masses: Float1D = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return np.asarray(masses / masses.sum())


def _proportion(count: int, n: int, confidence: float) -> Proportion:
    error = (1 - confidence) / 2
    return Proportion(count / n, _share_at_least(count, n, error), _share_at_most(count, n, error))


def _share_at_least(count: int, n: int, error: float) -> float:
    """Clopper and Pearson's lower bound of a share that was seen `count` times in `n`."""
    from scipy import special

    return float(special.betaincinv(count, n - count + 1, error)) if count else 0.0


def _share_at_most(count: int, n: int, error: float) -> float:
    return 1 - _share_at_least(n - count, n, error)


def _assumption_free(worlds: TwoWorlds, delta: float, confidence: float) -> float:
    """Best threshold and direction by half of the runs, the bound by the other half."""
    error = (1 - confidence) / 2
    attacks = [(worlds.without, worlds.within), (-worlds.within, -worlds.without)]

    def bound(attack: int, threshold: float, half: slice) -> float:
        absent, present = (scores[half] > threshold for scores in attacks[attack])
        hit = _share_at_least(int(present.sum()), len(present), error)
        false_alarm = _share_at_most(int(absent.sum()), len(absent), error)
        return math.log((hit - delta) / false_alarm) if hit > delta else 0.0

    choosing, judging = slice(0, None, 2), slice(1, None, 2)
    thresholds = np.quantile(np.r_[worlds.without[choosing], worlds.within[choosing]], np.linspace(0.005, 0.995, 199))
    candidates = [(attack, sign * float(t)) for attack, sign in ((0, 1), (1, -1)) for t in thresholds]
    attack, threshold = max(candidates, key=lambda candidate: bound(candidate[0], candidate[1], choosing))
    return max(0.0, bound(attack, threshold, judging))


def _gaussian(worlds: TwoWorlds, delta: float, confidence: float) -> float:
    """μ from the two error rates at the midpoint, at the bounds of both, and ε from μ."""
    from scipy import special

    error = (1 - confidence) / 2
    false_alarm = _share_at_most(int((worlds.without > worlds.midpoint).sum()), len(worlds.without), error)
    miss = _share_at_most(int((worlds.within <= worlds.midpoint).sum()), len(worlds.within), error)
    return gaussian_epsilon(float(-special.ndtri(false_alarm) - special.ndtri(miss)), delta)


def _binomial_epsilon(n_right: int, n: int, error: float) -> float:
    """Largest ε whose best guesser gets this many right with at most this probability."""
    from scipy import special

    if n_right == 0:
        return 0.0
    # P[Binomial(n, p) ≥ v] = error has the Clopper-Pearson bound as its solution.
    share = float(special.betaincinv(n_right, n - n_right + 1, error))
    return max(0.0, float(special.logit(share)))
