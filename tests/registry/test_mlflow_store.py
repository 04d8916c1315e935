"""The store says every address explicitly, makes things once, and names what is wrong with an address."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import RegistryError
from registry.mlflow_store import MlflowStore, open_store

OPEN = """
import sys
from pathlib import Path
from registry.mlflow_store import open_store
print(open_store(sys.argv[1], Path(sys.argv[2])).experiment_id("talktrack-race"))
"""


def test_an_experiment_is_made_once_with_its_files_in_the_artifact_folder(store: MlflowStore) -> None:
    first = store.experiment_id("talktrack-once")

    assert store.experiment_id("talktrack-once") == first
    assert store.client().get_experiment(first).artifact_location == store.artifacts.as_uri()


def test_an_experiment_in_the_bin_is_named_with_the_way_to_restore_it(store: MlflowStore) -> None:
    experiment_id = store.experiment_id("talktrack-bin")
    store.client().delete_experiment(experiment_id)

    with pytest.raises(RegistryError, match=f"mlflow experiments restore -x {experiment_id}"):
        store.experiment_id("talktrack-bin")


def test_a_registered_model_keeps_its_description(store: MlflowStore) -> None:
    store.ensure_registered_model("talktrack-described", "first")
    store.ensure_registered_model("talktrack-described", "second")

    assert store.client().get_registered_model("talktrack-described").description == "first"


def test_there_are_no_links_where_nobody_serves_the_pages() -> None:
    assert MlflowStore("sqlite:///x.db", Path("files")).version_url("talktrack", "1") is None


def test_usage_data_stays_at_home(store: MlflowStore) -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_a_store_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    uri = "postgresql+psycopg2://ada:secret@localhost:1/mlflow"

    with pytest.raises(RegistryError, match="localhost:1/mlflow cannot be opened") as caught:
        open_store(uri, tmp_path)

    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "artifacts")]
    opened = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in opened]

    assert [process.returncode for process in opened] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
