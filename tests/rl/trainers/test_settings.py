"""Settings of the trainers: what is refused, and with which words; members of a sweep."""

from __future__ import annotations

from typing import Any

import pytest

from rl.errors import SettingsError
from rl.trainers import ALGORITHMS, D3RLPY, trainer_settings
from rl.trainers.settings import MaskedTrainerSettings

ACTORS = ["behavior_cloning", "iql", "awac", "crr", "conservative_actor_critic", "decision_transformer"]


@pytest.mark.parametrize("name", [*ALGORITHMS, *D3RLPY])
def test_settings_may_be_written_out_in_full(name: str) -> None:
    settings = trainer_settings(algorithm=name)

    assert trainer_settings(**settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence_width": 32}, "`sequence_width` has no effect here: it is of `encoder: sasrec`, and"),
        ({"longest_history": 4}, "`longest_history` has no effect here: it is of `encoder: sasrec`, and"),
        ({"selection_share": 0, "patience": 2}, "`patience` has no effect here: with `selection_share` 0 no look"),
        ({"selection_share": 0, "sweep": {"discount": [0.9]}}, "`sweep` has no effect here: with `selection_share` 0"),
        ({"return_lambda": 0.5, "return_steps": 7}, "`return_steps` has no effect here: `return_lambda` takes its"),
        ({"algorithm": "decision_transformer", "layer_norm": False}, "`layer_norm` has no effect here"),
        ({"algorithm": "decision_transformer", "sweep": {"discount": [0.9]}}, "`sweep` cannot vary discount"),
        ({"algorithm": "behavior_cloning", "sweep": {"discount": [0.9]}}, "It may vary learning_rate, each"),
        ({"algorithm": "behavior_cloning", "return_steps": 2}, "return_steps: Extra inputs are not permitted"),
        *(({"algorithm": name, "pessimism": 3.0}, "this policy acts by preferences") for name in ACTORS),
    ],
)
def test_what_would_have_no_effect_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        trainer_settings(**({"algorithm": "cql"} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sweep": {"learning_rate": [1e-3, -1]}}, "cannot set learning_rate to -1: Input should be greater than 0"),
        ({"sweep": {"discount": [1.5]}}, "cannot set discount to 1.5: Input should be less than or equal to 1"),
        ({"algorithm": "iql", "sweep": {"expectile": [0.2]}}, "cannot set expectile to 0.2: Input should be greater"),
        ({"sweep": {"discount": [0.9, 0.9]}}, "names a value of discount twice"),
        ({"sweep": {"discount": []}}, "has a setting without values"),
        ({"sweep": {"seed": [1, 2]}}, "cannot vary seed. It may vary conservative_weight, discount, learning_rate"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"hidden_units": [0]}, "greater than or equal to 1"),
        ({"device": "gpu"}, "device: String should match"),
        ({"algorithm": "d3rlpy_decision_transformer", "hidden_units": [33]}, "multiple of 2"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        trainer_settings(**({"algorithm": "cql"} | fields))


def test_a_sweep_s_members_are_all_combinations_times_the_seeds() -> None:
    settings = trainer_settings(
        algorithm="cql", n_members=2, seed=7, sweep={"discount": (0.9, 1.0), "conservative_weight": (0.0, 2.0)}
    )
    assert isinstance(settings, MaskedTrainerSettings)

    members = settings.members(training_discount=0.5)

    assert [member.seed for member in members] == [7, 8] * 4
    knobs = [(member.knobs["discount"], member.knobs["conservative_weight"]) for member in members[::2]]
    assert knobs == [(0.9, 0.0), (0.9, 2.0), (1.0, 0.0), (1.0, 2.0)]
    assert {member.knobs["learning_rate"] for member in members} == {settings.learning_rate}
    assert len({member.setting for member in members}) == 4
