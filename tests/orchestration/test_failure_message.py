"""What a stopped night says: the failed check, the user's mistake, or our own trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration.nightly import failure_message
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from rl.errors import DataError


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Dagster logs every event of a run; the tests read the result instead."""
    logger = logging.getLogger("dagster")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


def stopped(step: Any, **outcome: Any) -> dg.ExecuteInProcessResult:
    """A run of an asset that calls `step`, with a blocking check of the given outcome."""

    @dg.asset
    def rows() -> None:
        step()

    @dg.asset_check(asset=rows, blocking=True)
    def rows_are_good() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(**{"passed": False, **outcome})

    return dg.materialize([rows, rows_are_good], raise_on_error=False)


def nothing() -> None:
    """A step that works."""


def test_a_failed_check_is_its_description_and_nothing_else() -> None:
    message = failure_message(stopped(nothing, description="3 of 4 rows are bad. Mend the source."))
    assert message == "The check `rows_are_good` of rows failed.\n3 of 4 rows are bad. Mend the source."


def test_a_failed_check_without_a_description_shows_its_numbers() -> None:
    message = failure_message(stopped(nothing, metadata={"failed_row_count": 3}))
    assert message == "The check `rows_are_good` of rows failed.\nfailed_row_count: 3"


def test_a_users_mistake_is_its_message(tmp_path: Path) -> None:
    workspace = Workspace(TalktrackSettings(home=tmp_path))

    def mistaken() -> None:
        with workspace.step():
            raise DataError("Row 3 is wrong. Mend it.")

    assert failure_message(stopped(mistaken)) == "The night stopped in step `rows`.\nRow 3 is wrong. Mend it."


def test_our_own_fault_keeps_its_trace() -> None:
    def broken() -> None:
        raise ZeroDivisionError("ours")

    message = failure_message(stopped(broken))
    assert message.startswith("The night stopped in step `rows`.\n")
    assert "ZeroDivisionError: ours" in message
    assert "in broken" in message
