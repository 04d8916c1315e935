"""d3rlpy's DiscreteDecisionTransformer behind the trainer protocol.

Here: the windows that it is given, what is done about its habits, the export of its weights. Not here: our own decision
transformer (`rl.trainers.decision_transformer`), the network that acts (`rl.policies.transformer`).

What d3rlpy 2.8.1 would do, and what is done instead:

- its loss counts padded steps as if action 0 had been taken there. Here a step that is not there has no weight;
- it knows no action mask. Here the mask travels as the last A columns of the observation, as for its other algorithms;
- it decays the learning rate over 30 million tokens, which a night never sees. Here over the tokens of the training;
- its layer norms add 0.003 to the variance. Here 1e-5, as in the network that acts.

As in ours, the return that is asked for stays the same throughout a dialogue, and so does the one it learns from: the
whole dialogue's. Positions count from the window's first decision.
"""

from __future__ import annotations

import time
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl.datasets.transitions import TransitionSet
from rl.errors import TrainingError
from rl.policies.networks import LAYER_NORM_EPSILON, Standardizer
from rl.policies.scores import Scores
from rl.policies.storage import StoredPolicy
from rl.policies.transformer import DecisionTransformer
from rl.trainers.batches import check_finite, reward_scale
from rl.trainers.d3rlpy_adapter import CURVE_POINTS, MASKED_VALUE, algorithms, library, one_torch_thread
from rl.trainers.d3rlpy_trainers import NOTE
from rl.trainers.decision import decided_by
from rl.trainers.protocol import TrainingRecord

N_HEADS, N_LAYERS = 2, 2
WARM_UP_SHARE = 0.05
"""Share of the tokens over which the learning rate rises."""


class DiscreteDecisionTransformer:
    """d3rlpy's DiscreteDecisionTransformer; keeps the contract of `rl.trainers.protocol.Trainer`."""

    def fit(
        self,
        dataset: TransitionSet,
        settings: Any,
        behavior: StoredPolicy,
        record: TrainingRecord | None = None,
    ) -> StoredPolicy:
        """Learn a policy; see `Trainer.fit`."""
        record = record or TrainingRecord()
        record.notes.append(NOTE)
        training = dataset.training()
        sampler = WindowSampler(training, settings.context_steps, settings.seed)
        learned = learn(sampler, dataset.n_actions, settings, record)
        wanted = float(np.quantile(training.returns, settings.target_quantile)) / sampler.reward_scale
        network = exported(learned.impl.modules.transformer, sampler.standardizer, settings.context_steps, wanted)
        policy, reached = decided_by(Scores.of(network), settings, behavior, training, is_actor=True)
        for name, value in reached.items():
            record(name, value, settings.n_steps)
        return policy


class WindowSampler:
    """The decisions that lead to rows drawn at random, K at most, as d3rlpy's trajectory batches.

    A window begins at its first decision and is padded behind its last. `inputs` (N, D + A): standardised observations
    and the mask.
    """

    def __init__(self, dataset: TransitionSet, context_steps: int, seed: int) -> None:
        check_finite(dataset)
        self.standardizer = Standardizer.fit(dataset.observations)
        self.reward_scale = reward_scale(dataset.rewards, dataset.episode_offsets)
        self.n_features = dataset.observation_size
        self._random = np.random.default_rng(seed)
        mask = dataset.logged_mask.astype(np.float32)
        self.inputs = np.concatenate((self.standardizer(dataset.observations), mask), axis=1)
        self._actions = dataset.actions.astype(np.float32)[:, None]
        returns = dataset.returns[dataset.episode_index] / self.reward_scale
        self._returns = returns.astype(np.float32)[:, None]
        self._first = dataset.episode_offsets[:-1][dataset.episode_index]
        self._places = np.arange(context_steps)
        lengths = np.minimum(dataset.step_index + 1, context_steps)
        self.mean_length = float(lengths.mean())

    def sample_trajectory_batch(self, batch_size: int) -> Any:
        """A d3rlpy `TrajectoryMiniBatch`."""
        last = self._random.integers(len(self.inputs), size=batch_size)[:, None]
        rows = np.maximum(self._first[last], last - len(self._places) + 1) + self._places
        there = (rows <= last).astype(np.float32)
        rows = np.minimum(rows, last)
        return library.dataset.TrajectoryMiniBatch(
            observations=self.inputs[rows],
            actions=self._actions[rows],
            rewards=np.zeros((*rows.shape, 1), dtype=np.float32),  # not read: returns are
            returns_to_go=self._returns[rows],
            terminals=np.zeros((*rows.shape, 1), dtype=np.float32),  # not read
            timesteps=np.broadcast_to(self._places.astype(np.float32), rows.shape).copy(),
            masks=there,
            length=len(self._places),
        )


def exported(transformer: Any, standardizer: Standardizer, context_steps: int, wanted: float) -> DecisionTransformer:
    """d3rlpy's transformer as the network that acts in numpy, asking for `wanted` (over the reward scale).

    Raises TrainingError if a weight is not finite.
    """
    width = transformer._output.weight.shape[1]
    state = next(layer for layer in transformer._encoder.modules() if isinstance(layer, torch.nn.Linear))
    weights = {
        **_linear("wanted", transformer._rtg_embed),
        **_linear("state", state),
        "taken_weight": _array(transformer._action_embed.weight),
        "taken_bias": np.zeros(width, dtype=np.float32),
        "positions": _array(transformer._position_encoding._embed.weight)[:context_steps],  # d3rlpy has a few more
        "score_weight": _array(transformer._output.weight.T),
        "score_bias": np.zeros(transformer._output.weight.shape[0], dtype=np.float32),
        **_norm("last", transformer._gpt2._layer_norm),
    }
    for number, block in enumerate(transformer._gpt2._transformer):
        attention = block._attention
        parts = {"query": attention._q, "key": attention._k, "value": attention._v, "joined": attention._proj}
        parts |= {"up": block._mlp._l1, "down": block._mlp._l2}
        for name, layer in parts.items():
            weights |= _linear(f"{name}_{number}", layer)
        weights |= _norm(f"attend_{number}", block._layer_norm1) | _norm(f"inner_{number}", block._layer_norm2)
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise TrainingError("The network has weights that are not finite: it diverged. Lower `learning_rate`.")
    return DecisionTransformer(standardizer, weights, N_HEADS, wanted)


def learn(sampler: WindowSampler, n_actions: int, settings: Any, record: TrainingRecord) -> Any:
    """d3rlpy's algorithm after `settings.n_steps` of its updates.

    Raises TrainingError if a loss is not finite.
    """
    torch.manual_seed(settings.seed)
    learned = _configuration(sampler, settings).create(device="cpu:0")
    every = -(-settings.n_steps // CURVE_POINTS)
    with one_torch_thread():
        learned.create_impl((sampler.n_features,), n_actions)
        _mend(learned.impl, n_actions)
        losses: list[float] = []
        started = time.perf_counter()
        for step in range(1, settings.n_steps + 1):
            losses.append(learned.update(sampler.sample_trajectory_batch(settings.batch_size))["loss"])
            if step % every == 0 or step == settings.n_steps:
                record("seconds/step", (time.perf_counter() - started) / len(losses), step)
                _report(record, float(np.mean(losses)), step)
                losses.clear()
                started = time.perf_counter()
    return learned


def _configuration(sampler: WindowSampler, settings: Any) -> Any:
    n_tokens = round(settings.n_steps * settings.batch_size * sampler.mean_length)
    (width,) = settings.hidden_units
    return algorithms.DiscreteDecisionTransformerConfig(
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        encoder_factory=library.models.VectorEncoderFactory(hidden_units=[width], exclude_last_activation=True),
        context_size=settings.context_steps,
        max_timestep=settings.context_steps,
        num_heads=N_HEADS,
        num_layers=N_LAYERS,
        attn_dropout=0.0,
        resid_dropout=0.0,
        embed_dropout=0.0,
        activation_type="relu",
        embed_activation_type="none",
        position_encoding_type=library.PositionEncodingType.SIMPLE,
        warmup_tokens=round(WARM_UP_SHARE * n_tokens),
        final_tokens=n_tokens,
    )


def _mend(impl: Any, n_actions: int) -> None:
    """Mask the logits, leave padded steps out of the loss, and give the layer norms our small number."""
    transformer = impl.modules.transformer

    def without_mask(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][:, :-n_actions],)

    def masked(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor]) -> Any:
        logits = output[1].masked_fill(inputs[0][..., -n_actions:] == 0, MASKED_VALUE)
        return torch.softmax(logits, dim=-1), logits

    def compute_loss(self: Any, batch: Any) -> torch.Tensor:
        _, logits = transformer(
            batch.observations, batch.actions, batch.returns_to_go, batch.timesteps.long(), 1 - batch.masks
        )
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.actions.flatten().long(), reduction="none"
        ).view_as(batch.masks)
        mean: torch.Tensor = (loss * batch.masks).sum() / batch.masks.sum()
        return mean

    transformer._encoder.register_forward_pre_hook(without_mask)
    transformer.register_forward_hook(masked)
    impl.compute_loss = MethodType(compute_loss, impl)
    for module in transformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = LAYER_NORM_EPSILON


def _report(record: TrainingRecord, loss: float, step: int) -> None:
    if not np.isfinite(loss):
        raise TrainingError(f"losses/total is {loss} at step {step}: the training diverged. Lower `learning_rate`.")
    record("losses/total", loss, step)
    record("losses/imitation", loss, step)


def _linear(name: str, layer: Any) -> dict[str, NDArray[np.float32]]:
    return {f"{name}_weight": _array(layer.weight.T), f"{name}_bias": _array(layer.bias)}


def _norm(name: str, norm: Any) -> dict[str, NDArray[np.float32]]:
    return {f"{name}_norm": np.stack([_array(norm.weight), _array(norm.bias)])}


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
