"""Counts and values of the public logs, from their files through ingest and dbt to the exported marts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestration import settings as configuration
from orchestration import warehouse
from orchestration.ingest.landing import ingest
from orchestration.ingest.pseudonyms import load_key
from orchestration.workspace import configured_catalogue
from tests.transforms.conftest import dbt_command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_format", "folder", "n_dialogues", "n_steps", "mean_return", "conversion"),
    [
        ("persuasionforgood", "persuasionforgood", 300, 2959, 0.2723, 148 / 300),
        ("sgd", "sgd", 2787, 15744, 2136 / 2787, 2136 / 2787),
        ("inspired", "inspired2", 99, 1039, 46 / 99, 46 / 99),
    ],
)
def test_public_logs_give_their_published_counts(
    shared_data: Path,
    tmp_path: Path,
    log_format: str,
    folder: str,
    n_dialogues: int,
    n_steps: int,
    mean_return: float,
    conversion: float,
) -> None:
    config = tmp_path / "talktrack.yaml"
    config.write_text(f"home: {tmp_path}\n")
    settings = configuration.load(config=config, logs=str(shared_data / folder), log_format=log_format)
    paths = settings.paths
    catalogue = configured_catalogue(settings)
    ingest(
        str(shared_data / folder),
        log_format,
        landing=paths.landing,
        quarantine=paths.quarantine,
        catalogue=catalogue,
        key=load_key(paths.secrets),
        start_date=settings.logs.start_date,
        attribution_days=settings.logs.attribution_days,
        workers=1,
    )
    catalogue_file = warehouse.write_catalogue(catalogue, paths.root / "catalogue.csv")
    plan = warehouse.plan_build(settings, catalogue_file)
    environment = {
        **os.environ,
        **warehouse.dbt_environment(settings, catalogue_file),
        "DBT_TARGET_PATH": str(tmp_path / "dbt"),
        "DBT_LOG_PATH": str(tmp_path / "dbt"),
    }
    command = [dbt_command(), *plan.dbt_arguments(settings)]
    subprocess.run(command, cwd=warehouse.TRANSFORMS, env=environment, check=True, capture_output=True)
    warehouse.export_marts(paths.warehouse, paths.marts, plan.days)

    summary = warehouse.behavior_summary(paths.marts)

    assert (summary.n_dialogues, summary.n_usable, summary.n_steps) == (n_dialogues, n_dialogues, n_steps)
    assert summary.mean_return == pytest.approx(mean_return, abs=1e-9)
    assert summary.mean_parts["conversion"] == pytest.approx(conversion, abs=1e-9)
