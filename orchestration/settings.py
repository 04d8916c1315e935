"""talktrack.yaml + environment + command line → one frozen, validated `TalktrackSettings`.

Here: every threshold and path of the project, in one typed place, and the messages for a wrong one.
Not here: settings that only one job of `rl` or `registry` uses; those classes are composed here.

Precedence, last wins: defaults, the profile of the format (`orchestration/ingest/profiles`), `talktrack.yaml`, the
environment, the command line. Where the command line asks for another format than the file, the file speaks of other
logs: the profile then wins over it, in a workspace named like the format.
"""

from __future__ import annotations

import difflib
import os
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from registry.gates import GateSettings
from registry.privacy.settings import PrivacySettings, RetentionSettings
from rl.errors import SettingsError
from rl.settings import (
    AggregateTrainerSettings,
    BehaviorModelSettings,
    DatasetSettings,
    EncoderSettings,
    EvaluationSettings,
    PrivateEvaluationSettings,
    ScrubbingSettings,
    Settings,
)
from rl.trainers.settings import (
    AnyTrainerSettings,
    BehaviorCloningSettings,
    CQLSettings,
    D3rlpyCQLSettings,
    IQLSettings,
    settings_class,
)

PROJECT_ROOT = Path(__file__).resolve().parent.parent
CONFIG_FILE = "talktrack.yaml"
PROFILES = Path(__file__).parent / "ingest" / "profiles"


class LogsSettings(Settings):
    """Where dialogue logs come from and what they are."""

    path: str | None = None
    """Folder, file or fsspec URL of the logs. Empty: sample logs are made in the home folder."""

    format: str = "canonical"
    """Name of the reader: canonical, persuasionforgood, sgd, inspired, redial, convokit, chat."""

    catalogue: str | None = None
    """CSV with strategy, description, priority, role. Empty: the one shipped with the format's profile."""

    start_date: date = date(2026, 1, 1)
    """First day of the daily partitions; also the first day given to logs that carry no times."""

    time_zone: str = "UTC"
    """Time zone of the nightly schedule (02:00). Data days are always UTC."""

    attribution_days: int = Field(7, ge=0)
    """Days after the last turn in which an outcome still counts. Raised: later outcomes count, data is older."""

    max_quarantined_share: float = Field(0.01, ge=0, le=1)
    """Above this share of bad records the night stops before the warehouse."""


class SampleSettings(Settings):
    """The sample world's logs, made when no logs are configured."""

    dialogues: int = Field(20_000, ge=1)
    days: int = Field(36, ge=8)
    seed: int = 0


class PoliciesSettings(Settings):
    """Candidates of a night."""

    candidates: tuple[AnyTrainerSettings, ...] = (
        BehaviorCloningSettings(),
        CQLSettings(sweep={"conservative_weight": (0.05, 0.1)}),
        IQLSettings(),
        D3rlpyCQLSettings(),
    )

    aggregate: AggregateTrainerSettings = AggregateTrainerSettings()
    """The candidate that is learned from released aggregates alone."""

    @field_validator("candidates")
    @classmethod
    def _one_name_each(cls, candidates: tuple[AnyTrainerSettings, ...]) -> tuple[AnyTrainerSettings, ...]:
        names = [candidate.candidate_name for candidate in candidates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several candidates are called {', '.join(twice)}; give each a `name` of its own")
        return candidates


class TalktrackSettings(Settings):
    """Everything a night needs to know."""

    workspace: str = Field("storefront", pattern=r"^[a-z][a-z0-9_-]{0,40}$")
    """Names the state folder, the registered model `talktrack-<workspace>` and the privacy budget."""

    home: Path = Path(".talktrack")
    """Folder of all state. Relative paths count from the project root."""

    logs: LogsSettings = LogsSettings()
    sample: SampleSettings = SampleSettings()
    scrubbing: ScrubbingSettings = ScrubbingSettings()
    encoder: EncoderSettings = EncoderSettings()
    dataset: DatasetSettings = DatasetSettings()
    behavior_model: BehaviorModelSettings = BehaviorModelSettings()
    policies: PoliciesSettings = PoliciesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    private_evaluation: PrivateEvaluationSettings = PrivateEvaluationSettings()
    gate: GateSettings = GateSettings()
    privacy: PrivacySettings = PrivacySettings()
    retention: RetentionSettings = RetentionSettings()

    @model_validator(mode="after")
    def _kept_long_enough(self) -> TalktrackSettings:
        kept = self.retention.restricted_days
        needed = max(self.dataset.window_days, self.privacy.window_days) + self.logs.attribution_days + 1
        if kept is not None and kept < needed:
            raise ValueError(
                f"retention.restricted_days {kept} is too short: a window and the days until its outcomes count take "
                f"{needed}"
            )
        return self

    @model_validator(mode="after")
    def _aggregates_never_saw_who_judges(self) -> TalktrackSettings:
        if self.dataset.split == "time" and self.policies.aggregate.enabled:
            raise ValueError(
                "dataset.split time does not go with policies.aggregate.enabled: the private tables leave customers "
                "out by a hash, so customers of the newest dialogues are in them and cannot judge a policy made from "
                "them. Set dataset.split to customer, or policies.aggregate.enabled to false"
            )
        return self

    @property
    def paths(self) -> WorkspacePaths:
        """Every folder of this workspace."""
        home = self.home if self.home.is_absolute() else PROJECT_ROOT / self.home
        return WorkspacePaths(home=home, root=home / self.workspace)

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return f"talktrack-{self.workspace}"


class WorkspacePaths(Settings):
    """The folders of one workspace. Nothing crosses workspaces."""

    home: Path
    root: Path

    @property
    def landing(self) -> Path:
        return self.root / "landing"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def warehouse(self) -> Path:
        return self.root / "warehouse.duckdb"

    @property
    def marts(self) -> Path:
        return self.root / "marts"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger" / "rollout.db"

    @property
    def released(self) -> Path:
        """The released zone: noisy aggregates and what is computed from them alone."""
        return self.root / "released"

    @property
    def privacy_budget(self) -> Path:
        return self.root / "ledger" / "privacy_budget.db"

    @property
    def erasures(self) -> Path:
        return self.root / "erasures"

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def encoders(self) -> Path:
        return self.home / "encoders"

    @property
    def mlflow_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{self.home / 'mlflow.db'}")

    @property
    def mlflow_artifacts(self) -> Path:
        return self.home / "mlartifacts"


def load(
    *,
    config: Path | None = None,
    logs: str | None = None,
    log_format: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> TalktrackSettings:
    """Read the settings that hold for this process.

    `config` defaults to `TALKTRACK_CONFIG` or talktrack.yaml in the project root; `logs` and `log_format` to
    `TALKTRACK_LOGS` and `TALKTRACK_FORMAT`. Raises SettingsError naming file, key and value.
    """
    path = config or Path(os.environ.get("TALKTRACK_CONFIG", PROJECT_ROOT / CONFIG_FILE))
    values = _read_yaml(path)
    log_format = log_format or os.environ.get("TALKTRACK_FORMAT") or None
    logs = logs or os.environ.get("TALKTRACK_LOGS") or None
    in_file = values.get("logs", {}).get("format", "canonical")
    chosen = log_format or in_file
    if chosen != in_file:
        # The file speaks of other logs: the format's profile wins, in a workspace of the format's name.
        values = merged(values, {**profile(chosen), "workspace": chosen})
        values["logs"] = {**values.get("logs", {}), "path": None}
    else:
        values = merged(profile(chosen), values)
    values = merged(values, overrides or {})
    values.setdefault("logs", {})["format"] = chosen
    if logs:
        values["logs"]["path"] = logs
    if chosen != "canonical" and not values["logs"].get("path"):
        raise SettingsError(
            f"Format {chosen!r} needs logs to read: give their folder with LOGS=… or set logs.path in {path}."
        )
    if home := os.environ.get("TALKTRACK_HOME"):
        values["home"] = home
    return _validated(values, path)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` in which the keys of `over` win, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return result


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise SettingsError(
            f"No settings at {path}. Create it (see talktrack.yaml in the repository) or set TALKTRACK_CONFIG."
        ) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}\nCorrect it and run again.") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must be a mapping of keys; found {type(values).__name__}.")
    return values


def profile(name: str) -> dict[str, Any]:
    """What a format brings: catalogue, turn limit, reward. Empty for the canonical format.

    Raises SettingsError naming the known formats.
    """
    path = PROFILES / f"{name}.yaml"
    if name == "canonical" and not path.exists():
        return {}
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise SettingsError(f"There is no log format {name!r}. Known formats: canonical, {known}.")
    return _read_yaml(path)


def _validated(values: dict[str, Any], path: Path) -> TalktrackSettings:
    try:
        return TalktrackSettings.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in fault['loc'])}: {_fault_text(fault)}" for fault in error.errors()]
        raise SettingsError(
            f"{path}: {len(lines)} setting(s) are wrong:\n" + "\n".join(lines) + "\nCorrect them and run again."
        ) from None


def _fault_text(fault: Any) -> str:
    """What is wrong with one setting, and for an unknown one the known name that looks most like it."""
    if fault["type"] == "union_tag_not_found":
        return f"name an `algorithm` (found {fault['input']!r})"
    if fault["type"] != "extra_forbidden":
        return f"{fault['msg']} (found {fault['input']!r})"
    *section, name = fault["loc"]
    near = difflib.get_close_matches(str(name), _names_in(section), n=1)
    return "there is no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _names_in(section: list[Any]) -> list[str]:
    """Names of the settings in a section; none for a list of sections."""
    kind: Any = TalktrackSettings
    for part in section:
        if kind is None and (trainer := settings_class(str(part))):  # an entry of `policies.candidates`
            kind = trainer
            continue
        field = getattr(kind, "model_fields", {}).get(part)
        kind = field.annotation if field and isinstance(field.annotation, type) else None
    return list(getattr(kind, "model_fields", {}))
