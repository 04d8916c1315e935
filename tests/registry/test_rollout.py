"""Legal moves, refusals, kills between the steps of a move, and moves made by hand in MLflow's pages."""

import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.errors import LedgerError, RegistryError, RolloutError
from registry.mlflow_store import MlflowStore
from registry.rollout import Rollout, open_rollout

NUMBERS = itertools.count()
BY_ADA: dict[str, Any] = {"actor": "ada", "reason": "looks right"}


@dataclass
class Scene:
    """A model with versions, and its rollout."""

    store: MlflowStore
    rollout: Rollout

    def version(self, gate: str | None = "passed") -> str:
        tags = {"policy_version": "cql-1", "value": "2.3 EUR [2.2, 2.4]", "stage": "registered"}
        if gate:
            tags |= {"gate": gate, "gate.reasons": "The lower end is -0.05."}
        made = self.store.client().create_model_version(self.rollout.model, self.store.artifacts.as_uri(), tags=tags)
        return str(made.version)

    def aliases(self) -> dict[str, str]:
        found = self.store.client().get_registered_model(self.rollout.model).aliases
        return {alias: str(version) for alias, version in found.items()}

    def stage(self, version: str) -> str:
        return str(self.store.client().get_model_version(self.rollout.model, version).tags["stage"])

    def champion(self) -> str:
        """Bring a new version all the way up."""
        version = self.version()
        self.rollout.propose_challenger(version, **BY_ADA)
        for stage in ("shadow", "canary", "champion"):
            self.rollout.promote(stage, **BY_ADA)  # type: ignore[arg-type]
        return version


@pytest.fixture
def scene(store: MlflowStore, tmp_path: Path) -> Scene:
    model = f"talktrack-rollout-{next(NUMBERS)}"
    store.ensure_registered_model(model)
    return Scene(store, open_rollout(store, tmp_path / "ledger" / "rollout.db", model))


def test_a_version_climbs_one_stage_at_a_time(scene: Scene) -> None:
    version = scene.version()

    scene.rollout.propose_challenger(version, evidence_hash="e" * 32, **BY_ADA)
    assert scene.aliases() == {"challenger": version}
    for stage in ("shadow", "canary", "champion"):
        scene.rollout.promote(stage, **BY_ADA)  # type: ignore[arg-type]
        assert scene.aliases() == {stage: version}
        assert scene.stage(version) == stage

    rows = scene.rollout.ledger.rows()
    assert [(row.action, row.alias) for row in rows] == [
        ("propose", "challenger"),
        ("promote", "shadow"),
        ("promote", "canary"),
        ("promote", "champion"),
    ]
    assert rows[0].evidence_hash == "e" * 32


def test_a_replaced_champion_becomes_previous_and_a_rollback_brings_it_back(scene: Scene) -> None:
    first = scene.champion()
    second = scene.champion()
    assert scene.aliases() == {"champion": second, "previous": first}
    assert (scene.stage(first), scene.stage(second)) == ("previous", "champion")

    scene.rollout.rollback(actor="guardrail", reason="conversion fell")

    assert scene.aliases() == {"champion": first}
    assert (scene.stage(first), scene.stage(second)) == ("champion", "rolled_back")


def test_rolling_back_the_first_champion_returns_to_the_behavior_policy(scene: Scene) -> None:
    version = scene.champion()

    scene.rollout.rollback(**BY_ADA)

    assert scene.aliases() == {}
    assert scene.stage(version) == "rolled_back"
    with pytest.raises(RolloutError, match="no champion, so there is nothing to roll back"):
        scene.rollout.rollback(**BY_ADA)


def test_a_new_challenger_supersedes_the_old_one(scene: Scene) -> None:
    old, new = scene.version(), scene.version()
    scene.rollout.propose_challenger(old, **BY_ADA)

    scene.rollout.propose_challenger(new, **BY_ADA)

    assert scene.aliases() == {"challenger": new}
    assert (scene.stage(old), scene.stage(new)) == ("superseded", "challenger")


def test_proposing_the_challenger_again_records_nothing(scene: Scene) -> None:
    version = scene.version()
    first = scene.rollout.propose_challenger(version, **BY_ADA)

    assert scene.rollout.propose_challenger(version, **BY_ADA) == first
    assert len(scene.rollout.ledger.rows()) == 1


def test_a_withdrawn_version_can_be_proposed_again(scene: Scene) -> None:
    version = scene.version()
    scene.rollout.propose_challenger(version, **BY_ADA)
    scene.rollout.promote("shadow", **BY_ADA)

    scene.rollout.withdraw("shadow", **BY_ADA)
    assert (scene.aliases(), scene.stage(version)) == ({}, "withdrawn")

    scene.rollout.promote("challenger", version, **BY_ADA)
    assert scene.aliases() == {"challenger": version}


def test_a_transition_id_makes_a_move_happen_once(scene: Scene) -> None:
    scene.rollout.propose_challenger(scene.version(), transition_id="night-1", **BY_ADA)
    row = scene.rollout.promote("shadow", transition_id="move-1", **BY_ADA)

    assert scene.rollout.promote("shadow", transition_id="move-1", **BY_ADA) == row
    assert len(scene.rollout.ledger.rows()) == 2
    with pytest.raises(RolloutError, match="'move-1' already stands for row 2"):
        scene.rollout.promote("canary", transition_id="move-1", **BY_ADA)


@pytest.mark.parametrize(
    ("prepare", "act", "message"),
    [
        (
            lambda scene: scene.rollout.propose_challenger(scene.version(), **BY_ADA),
            lambda scene: scene.rollout.promote("champion", "1", **BY_ADA),
            "Version 1 of .* holds challenger and cannot become champion: only the canary can, and there is none",
        ),
        (
            lambda scene: scene.version(),
            lambda scene: scene.rollout.promote("shadow", **BY_ADA),
            "has no challenger, so nothing can become shadow",
        ),
        (
            lambda scene: scene.champion(),
            lambda scene: scene.rollout.propose_challenger("1", **BY_ADA),
            "Version 1 of .* is champion already",
        ),
        (
            lambda scene: scene.version(),
            lambda scene: scene.rollout.propose_challenger("9", **BY_ADA),
            "has no version '9'; its latest is 1",
        ),
        (
            lambda scene: scene.version(),
            lambda scene: scene.rollout.promote("latest", **BY_ADA),  # type: ignore[arg-type]
            "There is no stage 'latest'",
        ),
        (
            lambda scene: scene.champion(),
            lambda scene: scene.rollout.withdraw("champion", **BY_ADA),
            "champion cannot be withdrawn",
        ),
        (
            lambda scene: scene.version(),
            lambda scene: scene.rollout.withdraw("canary", **BY_ADA),
            "has no canary",
        ),
    ],
)
def test_illegal_moves_are_refused_with_what_would_be_legal(
    scene: Scene, prepare: Callable[[Scene], Any], act: Callable[[Scene], Any], message: str
) -> None:
    prepare(scene)
    before = scene.aliases()

    with pytest.raises(RolloutError, match=message):
        act(scene)

    assert scene.aliases() == before
    assert scene.rollout.status().faults == ()


@pytest.mark.parametrize(
    ("gate", "message"),
    [("refused", "was refused by the gate: The lower end is -0.05"), (None, "was never judged by the gate")],
)
def test_a_version_that_the_gate_did_not_pass_needs_a_recorded_reason(
    scene: Scene, gate: str | None, message: str
) -> None:
    version = scene.version(gate)

    with pytest.raises(RolloutError, match=message):
        scene.rollout.propose_challenger(version, **BY_ADA)
    row = scene.rollout.propose_challenger(version, override="small pilot", **BY_ADA)

    assert row.reason == f"looks right (gate {gate or 'never judged'}, overridden: small pilot)"
    assert scene.aliases() == {"challenger": version}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


STEPS = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "set_registered_model_tag",
)


@pytest.mark.parametrize("step", STEPS)
def test_a_move_that_was_killed_after_its_row_is_finished_by_reconcile(
    scene: Scene, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **options: Any) -> None:
        raise Killed

    first = scene.champion()
    second = scene.version()
    scene.rollout.propose_challenger(second, **BY_ADA)
    scene.rollout.promote("shadow", **BY_ADA)
    scene.rollout.promote("canary", **BY_ADA)
    with monkeypatch.context() as patch:
        patch.setattr(scene.rollout.client, step, killed)
        with pytest.raises(Killed):
            scene.rollout.promote("champion", transition_id="last", **BY_ADA)
    status = scene.rollout.status()
    assert status.unfinished == 1
    assert "are unfinished" in status.faults[0]

    assert scene.rollout.reconcile() == 1

    assert scene.aliases() == {"champion": second, "previous": first}
    assert (scene.stage(first), scene.stage(second)) == ("previous", "champion")
    assert scene.rollout.status().faults == ()
    assert scene.rollout.reconcile() == 0


def test_repeating_a_killed_move_finishes_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: Any) -> None:
        raise Killed

    version = scene.version()
    with monkeypatch.context() as patch:
        patch.setattr(scene.rollout.client, "set_registered_model_alias", killed)
        with pytest.raises(Killed):
            scene.rollout.propose_challenger(version, transition_id="night-1", **BY_ADA)
    assert scene.aliases() == {}

    scene.rollout.propose_challenger(version, transition_id="night-1", **BY_ADA)

    assert scene.aliases() == {"challenger": version}
    assert len(scene.rollout.ledger.rows()) == 1


def test_status_tells_stage_gate_and_value_of_each_alias(scene: Scene) -> None:
    version = scene.version()
    row = scene.rollout.propose_challenger(version, **BY_ADA)

    status = scene.rollout.status()

    assert [found.alias for found in status.aliases] == ["challenger", "shadow", "canary", "champion", "previous"]
    challenger, shadow = status.aliases[:2]
    assert (challenger.version, challenger.since, challenger.actor) == (version, row.at, "ada")
    assert (challenger.gate, challenger.value) == ("passed", "2.3 EUR [2.2, 2.4]")
    assert challenger.url == f"http://localhost:5000/#/models/{scene.rollout.model}/versions/{version}"
    assert (shadow.version, shadow.since, shadow.agrees) == (None, None, True)
    assert (status.faults, status.unfinished) == ((), 0)


@pytest.fixture
def moved_by_hand(scene: Scene) -> Scene:
    """Version 1 is champion; someone set the alias to version 2 in MLflow's pages."""
    scene.champion()
    scene.store.client().set_registered_model_alias(scene.rollout.model, "champion", scene.version())
    return scene


def test_an_alias_that_was_moved_by_hand_is_reported_and_stops_moves_that_touch_it(moved_by_hand: Scene) -> None:
    rollout = moved_by_hand.rollout

    assert rollout.status().faults == (
        "Alias `champion` was moved by hand: the ledger says version 1, MLflow says version 2.",
    )
    with pytest.raises(RolloutError, match="Adopt the move or restore the alias"):
        rollout.rollback(**BY_ADA)
    rollout.propose_challenger(moved_by_hand.version(), **BY_ADA)
    assert moved_by_hand.aliases() == {"champion": "2", "challenger": "3"}


def test_a_move_by_hand_can_be_adopted(moved_by_hand: Scene) -> None:
    row = moved_by_hand.rollout.adopt("champion", actor="ada", reason="meant it")

    assert (row.action, row.from_version, row.to_version) == ("adopt", "1", "2")
    assert moved_by_hand.aliases() == {"champion": "2"}
    assert moved_by_hand.rollout.status().faults == ()
    assert moved_by_hand.stage("1") == "superseded"


def test_a_move_by_hand_can_be_undone(moved_by_hand: Scene) -> None:
    assert moved_by_hand.rollout.restore("champion") == "1"

    assert moved_by_hand.aliases() == {"champion": "1"}
    with pytest.raises(RolloutError, match="there is nothing to settle"):
        moved_by_hand.rollout.restore("champion")


def test_an_alias_that_was_deleted_by_hand_is_reported(scene: Scene) -> None:
    scene.champion()
    scene.store.client().delete_registered_model_alias(scene.rollout.model, "champion")

    assert scene.rollout.status().faults == (
        "Alias `champion` was moved by hand: the ledger says version 1, MLflow says nothing.",
    )


def test_a_ledger_that_was_cut_short_is_noticed_and_stops_all_moves(scene: Scene) -> None:
    scene.champion()
    connection = sqlite3.connect(scene.rollout.ledger.path)
    connection.executescript("DROP TRIGGER transitions_are_never_deleted; DELETE FROM transitions WHERE seq = 4;")
    connection.close()

    assert "row 4 was recorded once" in scene.rollout.status().faults[0]
    with pytest.raises(LedgerError, match="row 4 was recorded once"):
        scene.rollout.propose_challenger(scene.version(), **BY_ADA)


def test_a_lost_ledger_does_not_swallow_moves(scene: Scene, tmp_path: Path) -> None:
    scene.champion()
    new = open_rollout(scene.store, tmp_path / "new" / "rollout.db", scene.rollout.model)

    with pytest.raises(LedgerError, match="the ledger has 0 rows"):
        new.propose_challenger(scene.version(), **BY_ADA)


def test_a_model_that_does_not_exist_is_named(store: MlflowStore, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="There is no registered model talktrack-nobody"):
        open_rollout(store, tmp_path / "rollout.db", "talktrack-nobody").status()
