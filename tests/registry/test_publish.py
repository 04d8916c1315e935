"""What MLflow holds of a policy, and that it answers without this repository as it does with it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.bundle import open_bundle
from registry.gates import GateSettings, judge
from registry.mlflow_store import MlflowStore
from registry.publish import Provenance, PublishedPolicy, evidence_hash, log_policy
from rl.encoders.dialogue import DialogueContext
from rl.errors import PolicyError
from rl.evaluation.evidence import Evidence

MODEL = "talktrack-publish"
CONTEXTS = [
    {
        "dialogue_id": f"d{k}",
        "segment": "new",
        "turns": [
            {"speaker": "customer", "text": "Hello, how much please?"},
            {"speaker": "agent", "text": "red shoes", "strategies": ["offer"]},
            {"speaker": "customer", "text": "no thanks"},
        ],
        "eligible_strategies": ["ask", "offer"] if k % 2 else None,
    }
    for k in range(12)
]

NEVER_SERVED = "dagster dbt duckdb d3rlpy torch transformers orchestration"
CLIENT = """
import importlib.abc, json, sys, time

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[3].split():
            raise ImportError(f"a served policy must not import {name}")

sys.meta_path.insert(0, Refuse())
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
start = time.perf_counter()
model = mlflow.pyfunc.load_model(sys.argv[2])
load_seconds = time.perf_counter() - start
answers = [decision.model_dump(mode="json") for decision in model.predict(json.loads(sys.stdin.read()))]
import rl, registry
print(json.dumps({"answers": answers, "files": [rl.__file__, registry.__file__], "seconds": load_seconds}))
"""


@pytest.fixture(scope="module")
def bundle(write_small_bundle: Callable[..., Path]) -> Path:
    return write_small_bundle(seed=21)


@pytest.fixture(scope="module")
def provenance(evidence_for: Callable[..., Evidence]) -> Provenance:
    evidence = evidence_for()
    return Provenance(
        candidate="cql",
        evidence=evidence,
        verdict=judge(evidence, "cql", GateSettings()),
        parameters={"trainer": {"algorithm": "cql", "n_steps": 4000}},
        tags={"dagster_run_id": "run-7", "git_commit": "abc"},
    )


@pytest.fixture(scope="module")
def published(store: MlflowStore, bundle: Path, provenance: Provenance) -> PublishedPolicy:
    return log_policy(store, model=MODEL, bundle=bundle, provenance=provenance)


@pytest.fixture(scope="module")
def artifact_tree(store: MlflowStore, published: PublishedPolicy) -> list[str]:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/{published.version}"))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_version_can_be_read_without_the_repository(
    store: MlflowStore, published: PublishedPolicy, provenance: Provenance
) -> None:
    version = store.client().get_model_version(MODEL, published.version)

    assert version.tags["gate"] == "passed"
    assert version.tags["value"] == "2.30 EUR [2.20, 2.40]"
    assert version.tags["data.window"] == "2026-01-01 to 2026-01-28"
    assert version.tags["data.fingerprint"] == "d" * 32
    assert (version.tags["zone"], version.tags["privacy_mode"]) == ("restricted", "individual")
    assert (version.tags["dagster_run_id"], version.tags["git_commit"]) == ("run-7", "abc")
    assert version.tags["evidence_hash"] == evidence_hash(provenance.evidence)
    assert "Value per dialogue: **2.30 EUR [2.20, 2.40]**" in version.description
    assert "All 7 checks passed." in version.description
    assert f"({published.run_url}/artifacts/card.html)" in version.description


def test_the_run_has_parameters_metrics_and_the_card(store: MlflowStore, published: PublishedPolicy) -> None:
    client = store.client()
    run = client.get_run(published.run_id)

    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.n_steps"] == "4000"
    assert run.data.metrics["evaluation/value_dr"] == 2.3
    assert run.data.metrics["evaluation/advantage_low"] == pytest.approx(0.2)
    assert run.data.metrics["evaluation/overlap_share"] == 0.95
    assert "card.html" in [found.path for found in client.list_artifacts(published.run_id)]


def test_the_model_holds_no_pickle_and_only_its_own_code(artifact_tree: list[str]) -> None:
    suffixes = {Path(path).suffix for path in artifact_tree}

    assert suffixes <= {".py", ".json", ".safetensors", ".html", ".csv", ".yaml", ".yml", ".txt", ".md", ""}
    assert [path for path in artifact_tree if not Path(path).suffix] == ["MLmodel", "registered_model_meta"]
    assert not [path for path in artifact_tree if "__pycache__" in path]
    assert {path.split("/")[1] for path in artifact_tree if path.startswith("code/")} == {"registry", "rl"}
    assert "artifacts/bundle/policy/policy.safetensors" in artifact_tree


def test_the_requirements_are_exact_and_without_training_libraries(
    store: MlflowStore, published: PublishedPolicy
) -> None:
    import mlflow

    path = mlflow.artifacts.download_artifacts(f"models:/{MODEL}/{published.version}/requirements.txt")
    lines = Path(path).read_text().split()

    assert all("==" in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert names == {"mlflow", "filelock", "numpy", "phonenumbers", "pydantic", "safetensors", "tokenizers"}


def test_the_signature_comes_from_the_typed_context(store: MlflowStore, published: PublishedPolicy) -> None:
    import mlflow

    info = mlflow.models.get_model_info(f"models:/{MODEL}/{published.version}")
    text = str(info.signature.inputs)

    assert "dialogue_id" in text
    assert "eligible_strategies" in text


def test_it_answers_the_same_in_a_process_without_this_repository(
    store: MlflowStore, published: PublishedPolicy, bundle: Path, tmp_path: Path
) -> None:
    expected = open_bundle(bundle).decide([DialogueContext.model_validate(given) for given in CONTEXTS])
    address = f"models:/{MODEL}/{published.version}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    answered = subprocess.run(
        [sys.executable, "-P", "-c", CLIENT, store.tracking_uri, address, NEVER_SERVED],
        input=json.dumps(CONTEXTS),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert answered.returncode == 0, answered.stderr[-3000:]
    result: dict[str, Any] = json.loads(answered.stdout.splitlines()[-1])
    repository = str(Path(__file__).resolve().parents[2])
    assert not [file for file in result["files"] if file.startswith(repository)]
    assert result["answers"] == [decision.model_dump(mode="json") for decision in expected]
    assert len({answer["strategy"] for answer in result["answers"]}) > 1


def test_a_malformed_context_is_named_without_its_text(store: MlflowStore, published: PublishedPolicy) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/{published.version}")
    turns = [{"speaker": "robot", "text": "my secret"}]

    with pytest.raises(PolicyError, match=r"Context 0, field `turns\.0\.speaker`") as caught:
        model.predict([{"dialogue_id": "d", "turns": turns}])

    assert "secret" not in str(caught.value)


def test_the_same_bundle_is_registered_once(
    store: MlflowStore, published: PublishedPolicy, bundle: Path, provenance: Provenance
) -> None:
    again = log_policy(store, model=MODEL, bundle=bundle, provenance=provenance)

    assert published.is_new
    assert not again.is_new
    assert (again.version, again.run_id) == (published.version, published.run_id)
    assert len(store.client().search_model_versions(f"name = '{MODEL}'")) == 1


def test_a_killed_run_is_taken_up_again(
    store: MlflowStore,
    provenance: Provenance,
    write_small_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    bundle = write_small_bundle(seed=22)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", killed)
        patch.setattr(MlflowClient, "set_terminated", lambda *arguments, **options: None)
        with pytest.raises(KeyboardInterrupt):
            log_policy(store, model="talktrack-killed", bundle=bundle, provenance=provenance)

    published = log_policy(store, model="talktrack-killed", bundle=bundle, provenance=provenance)

    assert published.version == "1"
    assert len(store.client().search_runs([published.experiment_id])) == 1


def test_a_run_killed_after_its_version_was_registered_is_closed(
    store: MlflowStore,
    provenance: Provenance,
    write_small_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    bundle = write_small_bundle(seed=23)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", lambda *arguments, **options: None)
        killed = log_policy(store, model="talktrack-closed", bundle=bundle, provenance=provenance)
    assert store.client().get_run(killed.run_id).info.status == "RUNNING"

    published = log_policy(store, model="talktrack-closed", bundle=bundle, provenance=provenance)

    assert (published.version, published.run_id, published.is_new) == ("1", killed.run_id, False)
    assert store.client().get_run(killed.run_id).info.status == "FINISHED"


def test_links_lead_to_the_pages_of_run_and_version(published: PublishedPolicy) -> None:
    assert published.run_url == (
        f"http://localhost:5000/#/experiments/{published.experiment_id}/runs/{published.run_id}"
    )
    assert published.version_url == f"http://localhost:5000/#/models/{MODEL}/versions/1"
