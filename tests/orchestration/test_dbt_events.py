"""What Dagster is told of a dbt build: no number of rows that is about fewer than 20 dialogues."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from orchestration.assets.warehouse import _without_small_counts

EVENTS = {
    "output": lambda metadata: dg.Output(None, "model", metadata=metadata),
    "materialization": lambda metadata: dg.AssetMaterialization("model", metadata=metadata),
    "check": lambda metadata: dg.AssetCheckResult(
        passed=False, asset_key="model", check_name="unique", metadata=metadata, severity=dg.AssetCheckSeverity.WARN
    ),
    "evaluation": lambda metadata: dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("model"), check_name="unique", passed=False, metadata=metadata
    ),
}


def shown(event: Any) -> dict[str, Any]:
    return {name: value.value for name, value in _without_small_counts(event).metadata.items()}


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("name", ["dagster/row_count", "dagster_dbt/failed_row_count"])
def test_small_counts_are_left_out_and_the_rest_of_the_event_stays(kind: str, name: str) -> None:
    rest = {"status": "success"}
    assert shown(EVENTS[kind]({name: 3, **rest})) == rest
    for n in (0, 20, 10_000):
        assert shown(EVENTS[kind]({name: n, **rest})) == {name: n, **rest}


def test_a_failed_check_stays_failed_and_keeps_its_severity() -> None:
    event = _without_small_counts(EVENTS["check"]({"dagster_dbt/failed_row_count": 3}))
    assert (event.passed, event.check_name, event.severity) == (False, "unique", dg.AssetCheckSeverity.WARN)
