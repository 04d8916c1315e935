"""The one place that knows d3rlpy: transition sets in, d3rlpy's updates in the middle, numpy networks out.

Here: the sampler that d3rlpy's `fit` draws from, the mask that d3rlpy does not have, the logger that forwards
its metrics, the export of its weights. Not here: which algorithm with which settings (the module of each
trainer), the export of a data set to `MDPDataset` (`rl.datasets.mdp`).

d3rlpy 2.8.1 has habits that spoil a result in silence. What is done about each:

- its `ReplayBuffer` samples in a Python loop. Here rows are gathered with numpy: a batch of 256 transitions
  of 250 features took 0.12 ms instead of 2.7 ms (one core), where the update itself takes 2 to 5 ms;
- a `ReplayBuffer` guesses the number of actions from the largest one seen; here it is always the catalogue's;
- it drops the last step of a truncated episode; here that step bootstraps from `final_observations`;
- it accepts NaN and trains NaN; here NaN is a DataError before and a TrainingError after;
- `fit` trains nothing when `n_steps` is less than an epoch and drops the remainder of the last epoch; here
  epochs fit, the remainder is trained, and the number of gradient steps is asserted;
- it knows no action mask. Here the mask travels as the last A columns of the observation, and hooks on the
  networks cut it off before the first layer and put MASKED_VALUE where it is false. So targets, the
  log-sum-exp of CQL, the softmax of BC and of an actor, and the greedy action all see legal actions only;
- its DiscreteBCQ shares an encoder between Q and imitator, and subtracts the least value of a row before it
  multiplies with the support: a masked value of -1e6 would leave no digits. Here nothing is shared, and BCQ's masks
  act on the imitator alone, whose support is what its targets and its choice go by;
- its DiscreteSAC learns a temperature for an entropy of 0.98 log A, which a row with fewer legal actions cannot
  have: the temperature would grow without end. Here it is fixed;
- its discrete TD loss is Huber, which takes a median where returns are rare and large, as purchases are. Here
  it is the squared error, whose minimum is the mean;
- it logs to files in the working folder and to standard output, which belongs to the JSON lines of a job.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

with contextlib.redirect_stderr(io.StringIO()):  # gym says on each import that it is unmaintained
    import d3rlpy
from d3rlpy.models.q_functions import MeanQFunctionFactory
from d3rlpy.models.torch.q_functions.base import QFunctionOutput
from d3rlpy.models.torch.q_functions.mean_q_function import (
    DiscreteMeanQFunction,
    DiscreteMeanQFunctionForwarder,
)
from d3rlpy.models.torch.q_functions.utility import compute_reduce, pick_value_by_action

from rl.datasets.transitions import TransitionSet
from rl.errors import TrainingError
from rl.policies.networks import MLP, Standardizer
from rl.trainers.batches import check_final_masks, check_finite, next_rows, reward_scale, start_rows
from rl.trainers.protocol import OnMetric
from rl.trainers.settings import TrainerSettings
from rl.types import Bool2D

library = d3rlpy
"""d3rlpy itself; trainers take it from here, so that the import stays silent."""
algorithms = d3rlpy.algos
"""The configurations of its algorithms."""

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

MASKED_VALUE = -1e6
"""Value of an illegal action. Finite, because d3rlpy multiplies it by zero; exp of it is 0 in float32."""

CURVE_POINTS = 20
"""Points of each curve, at most and about; an epoch of d3rlpy is that share of the steps, rounded up."""

METRIC_NAMES = {
    "loss": "losses/total",
    "td_loss": "losses/td",
    "conservative_loss": "losses/conservative",
    "imitation_loss": "losses/imitation",
    "imitator_loss": "losses/imitation",
    "critic_loss": "losses/total",
    "actor_loss": "losses/actor",
    "time_step": "seconds/step",
    "time_sample_batch": "seconds/sample",
    "time_algorithm_update": "seconds/update",
}
"""d3rlpy's names and ours; what is not listed is not reported."""


class TransitionSampler:
    """What d3rlpy's `fit` needs of a data set: uniform batches of training transitions, gathered by numpy.

    Observations are standardised; the mask follows as A more columns (1 legal, 0 not). Rewards are divided by
    `reward_scale`. With `legal_starts_only`, steps whose logged action is illegal today are not learned from
    as starts (their value has no meaning under today's rules) but still serve as what comes next.
    """

    def __init__(self, dataset: TransitionSet, mask: Bool2D, seed: int, legal_starts_only: bool) -> None:
        check_finite(dataset)
        check_final_masks(dataset)
        self.standardizer = Standardizer.fit(dataset.observations)
        self.reward_scale = reward_scale(dataset.rewards, dataset.episode_offsets)
        self._random = np.random.default_rng(seed)
        self._rows = np.concatenate((self._inputs(dataset.observations, mask), self._final_inputs(dataset)))
        self._next_row = next_rows(dataset)
        terminal = dataset.is_last & dataset.terminated[dataset.episode_index]
        self._terminal = terminal.astype(np.float32)[:, None]
        self._actions = dataset.actions.astype(np.float32)[:, None]
        self._rewards = (dataset.rewards / np.float32(self.reward_scale))[:, None]
        self._starts = start_rows(dataset, mask, legal_starts_only)
        self.n_actions = dataset.n_actions
        self.dataset_info = _dataset_info(self._rows.shape[1], dataset.n_actions)

    def sample_transition_batch(self, batch_size: int) -> Any:
        """A d3rlpy `TransitionMiniBatch` of rows drawn with replacement."""
        rows = self._starts[self._random.integers(len(self._starts), size=batch_size)]
        return d3rlpy.dataset.TransitionMiniBatch(
            observations=self._rows[rows],
            actions=self._actions[rows],
            rewards=self._rewards[rows],
            next_observations=self._rows[self._next_row[rows]],
            next_actions=self._actions[rows],  # of SARSA-like algorithms only, which are not used here
            terminals=self._terminal[rows],
            intervals=np.ones((len(rows), 1), dtype=np.float32),
            transitions=(),
        )

    def probe(self, n_rows: int = 2048) -> NDArray[np.float32]:
        """(P, D + A) inputs of evenly spread start rows, to look at the values while they are learned."""
        return self._rows[self._starts[:: max(1, len(self._starts) // n_rows)]]

    def _inputs(self, observations: NDArray[Any], mask: Bool2D) -> NDArray[np.float32]:
        return np.concatenate((self.standardizer(observations), mask.astype(np.float32)), axis=1)

    def _final_inputs(self, dataset: TransitionSet) -> NDArray[np.float32]:
        cut = dataset.truncated
        return self._inputs(dataset.final_observations[cut], dataset.final_action_mask[cut])


def _dataset_info(input_size: int, n_actions: int) -> Any:
    signature = d3rlpy.dataset.Signature
    return d3rlpy.dataset.DatasetInfo(
        observation_signature=signature([np.dtype(np.float32)], [(input_size,)]),
        action_signature=signature([np.dtype(np.float32)], [(1,)]),
        reward_signature=signature([np.dtype(np.float32)], [(1,)]),
        action_space=d3rlpy.constants.ActionSpace.DISCRETE,
        action_size=n_actions,
    )


class SquaredErrorForwarder(DiscreteMeanQFunctionForwarder):  # type: ignore[misc]
    """d3rlpy's mean Q-function with a squared TD error in place of Huber's."""

    def compute_error(
        self,
        observations: torch.Tensor,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        target: torch.Tensor,
        terminals: torch.Tensor,
        gamma: Any = 0.99,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """(B, 1) arrays → half the squared error between Q(s, a) and r + γ (1 − terminal) target."""
        value = pick_value_by_action(self._q_func(observations).q_value, actions, keepdim=True)
        error = rewards + gamma * target * (1.0 - terminals) - value
        reduced: torch.Tensor = compute_reduce(0.5 * error**2, reduction)
        return reduced


class SquaredErrorQFunctionFactory(MeanQFunctionFactory):  # type: ignore[misc]
    """Tells a d3rlpy algorithm to use `SquaredErrorForwarder`."""

    def create_discrete(self, encoder: Any, hidden_size: int, action_size: int) -> tuple[Any, Any]:
        """d3rlpy's own network, with our error."""
        q_function = DiscreteMeanQFunction(encoder, hidden_size, action_size)
        return q_function, SquaredErrorForwarder(q_function, action_size)


def encoder_factory(settings: TrainerSettings) -> Any:
    """The hidden layers of every network, with ReLU."""
    return d3rlpy.models.VectorEncoderFactory(hidden_units=list(settings.hidden_units))


class MetricAdapter(d3rlpy.logging.LoggerAdapter):  # type: ignore[misc]
    """A d3rlpy logger that forwards numbers and writes no file."""

    def __init__(self, on_metric: OnMetric, first_step: int) -> None:
        self._on_metric = on_metric
        self._first_step = first_step

    def write_metric(self, epoch: int, step: int, name: str, value: float) -> None:
        """Forward a metric that has a name of ours. Raises TrainingError if a loss is not finite."""
        if name not in METRIC_NAMES:
            return
        step += self._first_step
        if not np.isfinite(value):
            raise TrainingError(
                f"{METRIC_NAMES[name]} is {value} at step {step}: the training diverged. Lower `learning_rate`."
            )
        self._on_metric(METRIC_NAMES[name], float(value), step)


@dataclass(frozen=True)
class MetricAdapterFactory(d3rlpy.logging.LoggerAdapterFactory):  # type: ignore[misc]
    """Makes a `MetricAdapter` for each `fit`; `first_step` gradient steps were done before."""

    on_metric: OnMetric
    first_step: int = 0

    def create(self, algo: Any, experiment_name: str, n_steps_per_epoch: int) -> MetricAdapter:
        """d3rlpy's hook."""
        return MetricAdapter(self.on_metric, self.first_step)


def train_algorithm(
    config: Any,
    sampler: TransitionSampler,
    n_actions: int,
    settings: TrainerSettings,
    on_metric: OnMetric,
    on_epoch: Callable[[Any, int], None] = lambda algorithm, step: None,
) -> Any:
    """Build the d3rlpy algorithm of `config` with masked networks and take `settings.n_steps` gradient steps.

    `on_epoch(algorithm, step)` is called after each point of the curves.

    Raises TrainingError if a loss or weight is not finite, or a step was not taken.
    """
    torch.manual_seed(settings.seed)
    algorithm = config.create(device="cpu:0")
    with one_torch_thread():
        algorithm.create_impl((len(sampler.standardizer.shift),), n_actions)
        masked, unmasked = _masked_networks(algorithm)
        for network in (*masked, *unmasked):
            _cut_mask(network, n_actions)
        for network in masked:
            _mask_output(network, n_actions)
        epoch = -(-settings.n_steps // CURVE_POINTS)
        full = settings.n_steps - settings.n_steps % epoch
        for n_steps in (full, settings.n_steps - full):
            if n_steps:
                _fit(algorithm, sampler, n_steps, min(epoch, n_steps), on_metric, on_epoch)
    if algorithm.grad_step != settings.n_steps:
        raise TrainingError(
            f"{algorithm.grad_step} of {settings.n_steps} gradient steps were taken. Report this with the settings."
        )
    return algorithm


def export_network(module: torch.nn.Module, standardizer: Standardizer) -> MLP:
    """The linear layers of a d3rlpy network, in order, as arrays.

    Raises TrainingError if a weight is not finite.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    weights = tuple(layer.weight.detach().cpu().numpy().copy() for layer in layers)
    biases = tuple(layer.bias.detach().cpu().numpy().copy() for layer in layers)
    if not all(np.isfinite(array).all() for array in (*weights, *biases)):
        raise TrainingError("The network has weights that are not finite: it diverged. Lower `learning_rate`.")
    return MLP(standardizer, weights, biases)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Use one thread: batches of 256 rows are too small to share, and two trainers may run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(
    algorithm: Any,
    sampler: TransitionSampler,
    n_steps: int,
    epoch: int,
    on_metric: OnMetric,
    on_epoch: Callable[[Any, int], None],
) -> None:
    algorithm.fit(
        sampler,
        n_steps=n_steps,
        n_steps_per_epoch=epoch,
        logger_adapter=MetricAdapterFactory(on_metric, algorithm.grad_step),
        show_progress=False,
        with_timestamp=False,
        save_interval=n_steps + 1,
        epoch_callback=lambda trained, *_: on_epoch(trained, trained.grad_step),
    )


def _masked_networks(algorithm: Any) -> tuple[list[torch.nn.Module], list[torch.nn.Module]]:
    """Every network that maps observations to one number per action, target networks included: those whose output is
    masked, and those (BCQ's values) that only must not read the mask."""
    modules = algorithm.impl.modules
    values = [*getattr(modules, "q_funcs", ()), *getattr(modules, "targ_q_funcs", ())]
    choosers = [getattr(modules, name) for name in ("imitator", "policy") if hasattr(modules, name)]
    return (choosers, values) if hasattr(modules, "imitator") else ([*choosers, *values], [])


def _cut_mask(network: Any, n_actions: int) -> None:
    """Cut the mask's columns off before the encoder."""

    def without_mask(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][:, :-n_actions],)

    network._encoder.register_forward_pre_hook(without_mask)


def _mask_output(network: Any, n_actions: int) -> None:
    """Apply the mask to what the network gives out."""

    def masked(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: Any) -> Any:
        illegal = inputs[0][:, -n_actions:] == 0
        if isinstance(output, torch.distributions.Categorical):
            return torch.distributions.Categorical(logits=output.logits.masked_fill(illegal, MASKED_VALUE))
        return QFunctionOutput(output.q_value.masked_fill(illegal, MASKED_VALUE), output.quantiles, output.taus)

    network.register_forward_hook(masked)
