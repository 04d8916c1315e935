"""Which versions leave: none that a single customer's dialogue trained, whatever its tag says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.bundle import open_bundle
from registry.errors import ExportRefusedError, RegistryError
from registry.export import export_bundle
from registry.gates import GateSettings, judge
from registry.mlflow_store import MlflowStore
from registry.publish import Provenance, log_policy
from rl.evaluation.evidence import Evidence
from tests.registry.conftest import CATALOGUE

MODEL = "talktrack-export"


@pytest.fixture(scope="module")
def register(
    store: MlflowStore, write_small_bundle: Callable[..., Path], evidence_for: Callable[..., Evidence]
) -> Callable[[int, str], str]:
    def version_of(seed: int, privacy_mode: str) -> str:
        manifest: dict[str, Any] = {"catalogue": CATALOGUE.to_json(), "dataset_hash": "d" * 32}
        bundle = write_small_bundle(seed=seed, manifest={**manifest, "privacy_mode": privacy_mode})
        evidence = evidence_for()
        verdict = judge(evidence, "cql", GateSettings())
        return log_policy(
            store,
            model=MODEL,
            bundle=bundle,
            provenance=Provenance(candidate="cql", evidence=evidence, verdict=verdict),
        ).version

    return version_of


def test_a_version_trained_from_aggregates_is_handed_out_and_opens(
    store: MlflowStore, register: Callable[[int, str], str], tmp_path: Path
) -> None:
    description = export_bundle(store, MODEL, register(51, "aggregate"), tmp_path / "out")

    assert description.zone == "released"
    assert open_bundle(tmp_path / "out").description == description


def test_a_version_trained_on_dialogues_stays_and_the_message_says_why(
    store: MlflowStore, register: Callable[[int, str], str], tmp_path: Path
) -> None:
    version = register(52, "individual")
    with pytest.raises(ExportRefusedError, match="may be promoted and serve here, and leaves nowhere") as refused:
        export_bundle(store, MODEL, version, tmp_path / "out")
    assert f"Version {version} of {MODEL} is not exported" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_tag_that_was_edited_opens_no_door(
    store: MlflowStore, register: Callable[[int, str], str], tmp_path: Path
) -> None:
    version = register(53, "individual")
    store.client().set_model_version_tag(MODEL, version, "zone", "released")
    with pytest.raises(ExportRefusedError, match=r"its bundle\.json says it belongs to the restricted zone"):
        export_bundle(store, MODEL, version, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_version_without_a_zone_is_restricted(
    store: MlflowStore, register: Callable[[int, str], str], tmp_path: Path
) -> None:
    version = register(54, "aggregate")
    store.client().delete_model_version_tag(MODEL, version, "zone")
    with pytest.raises(ExportRefusedError):
        export_bundle(store, MODEL, version, tmp_path / "out")


def test_a_version_that_is_not_there_is_named(store: MlflowStore, tmp_path: Path) -> None:
    store.ensure_registered_model(MODEL)
    with pytest.raises(RegistryError, match=f"{MODEL} has no version 99"):
        export_bundle(store, MODEL, "99", tmp_path / "out")
