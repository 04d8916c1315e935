"""The study's exact worlds: a short form, and in full where slow tests run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.studies import exact_worlds
from tests.studies.exact_worlds import World, covered_row, learned_tables, learned_values, narrow_row
from tests.studies.memory import Memory


@pytest.fixture(scope="module")
def covered() -> list[World]:
    return [World.covered(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def narrow() -> list[World]:
    return [World.narrow(seed) for seed in range(3)]


def test_logs_have_the_promised_length_and_cover_the_best_policy(covered: list[World], narrow: list[World]) -> None:
    assert [world.dataset.n_steps for world in covered + narrow] == pytest.approx([50_000] * 5, rel=0.02)
    assert all(world.coverage() > 0.99 for world in covered)
    assert all(world.coverage() == 0 for world in narrow)


def test_a_narrow_log_holds_the_second_and_third_best_action_only(narrow: list[World]) -> None:
    for world in narrow:
        best_first = -np.sort(-world.process.optimal_q_values(), axis=-1)
        values = np.sort(world.process.optimal_q_values()[world.behavior > 0].reshape(-1, 2), axis=-1)
        np.testing.assert_array_equal(values[:, ::-1], best_first[..., 1:3].reshape(-1, 2))
        assert sorted(set(world.behavior[world.behavior > 0])) == [0.4, 0.6]
        assert (world.process.rewards < -1).all()


def test_cloning_gives_the_value_of_the_log_and_learning_nearly_the_best(covered: list[World]) -> None:
    for name, n_steps in (("behavior_cloning", 300), ("crr", 400)):
        values = learned_values(covered, name, n_steps=n_steps, learning_rate=5e-3)
        row = covered_row(name, covered, values)
        assert row.high is not None
        assert row.high < 0.05


def test_a_member_is_given_rows_of_its_own_world_only(covered: list[World]) -> None:
    together = learned_tables(covered, "behavior_cloning", n_steps=200, learning_rate=3e-3)

    for world, table in zip(covered, together, strict=True):
        own = np.abs(table - world.behavior).mean()
        assert own < 0.5 * min(np.abs(table - other.behavior).mean() for other in covered if other is not world)


def test_narrow_worlds_tell_careful_trainers_from_a_careless_one(narrow: list[World]) -> None:
    found = {name: learned_values(narrow, name, n_steps=150, learning_rate=5e-3) for name in ("double_dqn", "bcq")}

    assert narrow_row("double_dqn", narrow, found["double_dqn"]).value == 0
    assert narrow_row("bcq", narrow, found["bcq"]).holds


@pytest.mark.slow
def test_all_checks_hold(tmp_path: Path) -> None:
    rows = exact_worlds.rows(Memory(tmp_path / "pieces.json"), lambda stage, done, total: None)

    assert [row.check for row in rows if not row.holds] == []
