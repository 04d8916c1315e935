"""Known evidence, a small real bundle, and one MLflow store for all tests of the registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from registry.bundle import write_bundle
from registry.mlflow_store import MlflowStore, open_store
from rl.catalogue import ActionCatalogue, Strategy
from rl.encoders.dialogue import DialogueEncoder
from rl.encoders.static import StaticEncoder
from rl.evaluation.evidence import CandidateEvidence, Evidence, ValueEstimate
from rl.policies.networks import MLP, Standardizer
from rl.policies.scores import Scores
from rl.policies.softmax import SoftmaxPolicy

WORDS = ["[UNK]", "hello", "price", "red", "shoes", "please", "thanks", "no", "yes", "how", "much"]
CATALOGUE = ActionCatalogue(
    (
        Strategy("ask", "Ask what is wanted", 2, "selectable"),
        Strategy("inform", "State a fact", 3, "selectable"),
        Strategy("offer", "Offer an item", 1, "selectable"),
        Strategy("wait", "Say something neutral", 9, "fallback"),
        Strategy("thank", "After the decision", 8, "after_decision"),
    )
)


def estimate(value: float) -> ValueEstimate:
    return ValueEstimate(value=value, low=value - 0.1, high=value + 0.1, effective_sample_size=900.0, n_episodes=1000)


@pytest.fixture(scope="session")
def evidence_for() -> Callable[..., Evidence]:
    """Evidence that passes, but for the changes (fields of the candidate, or of the evidence itself)."""

    def build(**changes: Any) -> Evidence:
        candidate: dict[str, Any] = {
            "name": "cql",
            "algorithm": "cql",
            "estimates": {name: estimate(2.3) for name in ("wis", "pdis", "dr", "fqe")},
            "advantage": estimate(0.3),
            "effective_sample_size": 600.0,
            "effective_share": 0.6,
            "diagnostics": {"overlap_share": 0.95, "out_of_mask_share": 0.0, "mean_weight": 1.0},
            "strategy_use": (),
        }
        whole: dict[str, Any] = {
            "dataset_hash": "d" * 32,
            "reward_unit": "EUR",
            "confidence": 0.95,
            "window": ("2026-01-01", "2026-01-28"),
            "n_steps": 12_000,
            "n_episodes": 2500,
            "n_validation_episodes": 1000,
            "behavior": estimate(2.0),
            "behavior_validation": estimate(2.0),
            "behavior_parts": {"conversion": 0.2},
            "propensities_estimated_share": 0.0,
            "propensity_calibration_error": None,
            "privacy": None,
        }
        for name, value in changes.items():
            (whole if name in whole else candidate)[name] = value
        return Evidence(**whole, candidates=(CandidateEvidence(**candidate),))

    return build


def small_encoder() -> DialogueEncoder:
    """A dialogue encoder whose text encoder knows ten words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float16)
    return DialogueEncoder(StaticEncoder(vectors, tokenizer, "test"), CATALOGUE, ("new", "loyal"), 12, 2)


def small_policy(observation_size: int, seed: int) -> SoftmaxPolicy:
    rng = np.random.default_rng(seed)
    n_actions = len(CATALOGUE)
    network = MLP(
        Standardizer(np.zeros(observation_size, dtype=np.float32), np.ones(observation_size, dtype=np.float32)),
        (rng.normal(scale=0.3, size=(n_actions, observation_size)).astype(np.float32),),
        (np.zeros(n_actions, dtype=np.float32),),
    )
    return SoftmaxPolicy(Scores.of(network), "cql")


@pytest.fixture(scope="session")
def write_small_bundle(
    tmp_path_factory: pytest.TempPathFactory, evidence_for: Callable[..., Evidence]
) -> Callable[..., Path]:
    """Write a bundle with a real encoder and policy; another `seed` gives another policy."""

    def write(seed: int = 0, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("bundle")
        encoder = small_encoder()
        encoder.save(folder / "encoder")
        small_policy(encoder.layout.observation_size, seed).save(folder / "policy")
        (folder / "policy" / "training.json").write_text(json.dumps({"seed": seed}))
        values: dict[str, Any] = {
            "policy": folder / "policy",
            "encoder": folder / "encoder",
            "manifest": {
                "catalogue": CATALOGUE.to_json(),
                "dataset_hash": "d" * 32,
                "privacy_mode": "individual",
            },
            "settings": {"trainer": {"algorithm": "cql"}},
            "evidence": evidence_for(),
            "card": "<p>card</p>",
        }
        write_bundle(folder / "bundle", **{**values, **changes})
        return folder / "bundle"

    return write


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> MlflowStore:
    """One SQLite store for the session: creating its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", "http://localhost:5000")
