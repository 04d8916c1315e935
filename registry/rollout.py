"""The one module that moves aliases: which policy version is live, and how it got there.

Here: the stages, the legal moves between them, and finishing a move that was cut off. Not here: the record
of the moves (`registry.ledger`), the verdict that opens the first stage (`registry.gates`), traffic.

::

    registered ─propose► challenger ─promote► shadow ─promote► canary ─promote► champion ─replaced► previous
                             └────────withdraw────┴───────withdraw─┘                └◄────────rollback────┘

While there is no champion, the behavior policy stands in for it; rolling back the first champion returns to
that.

A move is one ledger row, then its aliases, then tags, in that order. The row alone determines the rest, so
a move that was killed after the row is finished by whoever comes next (`reconcile`). The last finished row
is noted on the registered model: rows after it are unfinished, and an alias that differs although all rows
are finished was moved by hand, which is reported and never silently undone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.errors import LedgerError, RegistryError, RolloutError
from registry.hash_chain import GENESIS
from registry.ledger import RolloutLedger, Row, Transition
from registry.mlflow_store import MlflowStore

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

Stage = Literal["challenger", "shadow", "canary", "champion"]
STAGES: tuple[Stage, ...] = ("challenger", "shadow", "canary", "champion")
PREVIOUS = "previous"
ALIASES: tuple[str, ...] = (*STAGES, PREVIOUS)

_OPEN_GATES = ("passed", "passed_in_dry_run", "unchecked")
_LEFT_BY = {"rollback": "rolled_back", "withdraw": "withdrawn"}
_APPLIED = "rollout.applied"
"""Tag of the registered model: `<seq> <hash>` of the last finished row. One tag, so that it is set at
once."""

_LOCK_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class AliasStatus:
    """Where one alias points, and what is known of the version there."""

    alias: str
    version: str | None
    """None where the alias points nowhere."""
    ledger_version: str | None
    """Where the ledger says it points."""
    since: str | None
    """When the version entered the stage: UTC, ISO 8601."""
    actor: str | None
    reason: str | None
    policy_version: str | None
    gate: str | None
    """`passed`, `refused`, `passed_in_dry_run` or `unchecked`."""
    value: str | None
    """Estimated value per dialogue with its interval."""
    url: str | None

    @property
    def agrees(self) -> bool:
        """Whether MLflow and the ledger say the same."""
        return self.version == self.ledger_version


@dataclass(frozen=True, kw_only=True)
class RolloutStatus:
    """The stages of one model, and what is wrong with them."""

    model: str
    aliases: tuple[AliasStatus, ...]
    """In the order of the stages; aliases that point nowhere are included."""
    unfinished: int
    """Moves in the ledger whose aliases were not set; `reconcile` sets them."""
    faults: tuple[str, ...]
    """Sentences; empty when all is well."""


class Rollout:
    """The rollout of one registered model. Safe to use from several processes: one moves at a time."""

    def __init__(self, store: MlflowStore, ledger: RolloutLedger, model: str) -> None:
        self.store = store
        self.ledger = ledger
        self.model = model
        self.client = store.client()

    def propose_challenger(
        self,
        version: str,
        *,
        actor: str,
        reason: str,
        evidence_hash: str | None = None,
        transition_id: str | None = None,
        override: str | None = None,
    ) -> Row:
        """Give a version that passed the gate the alias `challenger`; one that had it before is superseded.

        A version that is challenger already stays so, without a new row. `override` is a person's reason to
        propose a version that the gate refused; it is recorded. Raises RolloutError if the version is
        missing, refused, or in a later stage already.
        """
        with self._moving(transition_id) as done:
            if done is not None:
                return self._repeated(done, "propose", "challenger", version)
            before = self._agreed_aliases(("challenger",))
            held = _stage_of(version, before)
            if held == "challenger":
                return next(row for row in reversed(self.ledger.rows(self.model)) if row.to_version == version)
            if held is not None:
                raise RolloutError(
                    f"Version {version} of {self.model} is {held} already and cannot become challenger. "
                    + ("Roll back to it instead." if held == PREVIOUS else "Withdraw it from there first.")
                )
            reason = self._checked_reason(version, reason, override)
            return self._move(
                "propose", version, "challenger", before, version, actor, reason, evidence_hash, transition_id
            )

    def promote(
        self,
        to: Stage,
        version: str | None = None,
        *,
        actor: str,
        reason: str,
        transition_id: str | None = None,
        override: str | None = None,
    ) -> Row:
        """Move a version one stage up: challenger → shadow → canary → champion.

        `version` defaults to the one in the stage below. The champion that is replaced becomes `previous`.
        Raises RolloutError if the version is not in the stage below, its gate refused it and there is no
        `override`, or an alias of the two stages was moved by hand.
        """
        if to not in STAGES:
            raise RolloutError(f"There is no stage {to!r}; the stages are {', '.join(STAGES)}.")
        if to == "challenger":
            return self.propose_challenger(
                self._latest() if version is None else version,
                actor=actor,
                reason=reason,
                transition_id=transition_id,
                override=override,
            )
        with self._moving(transition_id) as done:
            if done is not None:
                return self._repeated(done, "promote", to, version)
            below = STAGES[STAGES.index(to) - 1]
            before = self._agreed_aliases((below, to, PREVIOUS) if to == "champion" else (below, to))
            version = self._version_in(below, to, version, before)
            reason = self._checked_reason(version, reason, override)
            return self._move("promote", version, to, before, version, actor, reason, None, transition_id)

    def rollback(self, *, actor: str, reason: str, transition_id: str | None = None) -> Row:
        """Make `previous` the champion again; without one, take the champion away, so that behavior stands in.

        Needs no trainer, no data and no gate. Raises RolloutError if there is no champion.
        """
        with self._moving(transition_id) as done:
            if done is not None:
                return self._repeated(done, "rollback", "champion", None)
            before = self._agreed_aliases(("champion", PREVIOUS))
            champion = before.get("champion")
            if champion is None:
                raise RolloutError(
                    f"{self.model} has no champion, so there is nothing to roll back: the behavior policy is live."
                )
            target = before.get(PREVIOUS)
            return self._move("rollback", champion, "champion", before, target, actor, reason, None, transition_id)

    def withdraw(self, stage: Stage, *, actor: str, reason: str, transition_id: str | None = None) -> Row:
        """Take the challenger, shadow or canary out of its stage. A champion is rolled back instead."""
        if stage not in STAGES[:-1]:
            raise RolloutError(f"{stage} cannot be withdrawn; only {', '.join(STAGES[:-1])} can. Use rollback.")
        with self._moving(transition_id) as done:
            if done is not None:
                return self._repeated(done, "withdraw", stage, None)
            before = self._agreed_aliases((stage,))
            version = before.get(stage)
            if version is None:
                raise RolloutError(f"{self.model} has no {stage}, so there is nothing to withdraw.")
            return self._move("withdraw", version, stage, before, None, actor, reason, None, transition_id)

    def adopt(self, alias: str, *, actor: str, reason: str, transition_id: str | None = None) -> Row:
        """Record where a person moved `alias` by hand, so that ledger and MLflow agree again.

        Raises RolloutError if they agree already.
        """
        with self._moving(transition_id) as done:
            if done is not None:
                return self._repeated(done, "adopt", alias, None)
            recorded, found = self._recorded_aliases(), self._mlflow_aliases()
            _require_difference(self.model, alias, recorded.get(alias), found.get(alias))
            target = found.get(alias)
            version = target or recorded[alias]
            return self._move("adopt", version, alias, recorded, target, actor, reason, None, transition_id)

    def restore(self, alias: str) -> str | None:
        """Put an alias that was moved by hand back to where the ledger says; return that version."""
        with self._moving(None):
            recorded, found = self._recorded_aliases(), self._mlflow_aliases()
            _require_difference(self.model, alias, recorded.get(alias), found.get(alias))
            self._point(alias, recorded.get(alias))
            return recorded.get(alias)

    def reconcile(self) -> int:
        """Finish moves whose ledger row was written and whose aliases were not; return how many there were."""
        with self._lock():
            return self._finish()

    def status(self) -> RolloutStatus:
        """Where every alias points and since when, and everything on which MLflow and the ledger differ."""
        rows = self.ledger.rows(self.model)
        registered = self._registered_model()
        found, recorded = _stage_aliases(registered), aliases_after(rows)
        applied = _last_applied(registered)
        unfinished = sum(row.seq > applied[0] for row in rows)
        aliases = tuple(self._alias_status(alias, found.get(alias), recorded.get(alias), rows) for alias in ALIASES)
        return RolloutStatus(
            model=self.model,
            aliases=aliases,
            unfinished=unfinished,
            faults=tuple(self._faults(registered, aliases, unfinished)),
        )

    # How a move is made

    def _move(
        self,
        action: str,
        version: str,
        alias: str,
        before: dict[str, str],
        to_version: str | None,
        actor: str,
        reason: str,
        evidence_hash: str | None,
        transition_id: str | None,
    ) -> Row:
        row = self.ledger.record(
            Transition(
                actor=actor,
                action=action,
                model=self.model,
                version=version,
                alias=alias,
                from_version=before.get(alias),
                to_version=to_version,
                reason=reason,
                evidence_hash=evidence_hash,
                transition_id=transition_id or uuid.uuid4().hex,
            )
        )
        self._finish()
        return row

    def _finish(self) -> int:
        applied = _last_applied(self._registered_model())
        # A lost or shortened ledger would number new rows as finished ones, and their aliases would never be set.
        self.ledger.verify(applied)
        rows = self.ledger.rows(self.model)
        pending = [row for row in rows if row.seq > applied[0]]
        for row in pending:
            self._apply(row, aliases_after([earlier for earlier in rows if earlier.seq < row.seq]))
        return len(pending)

    def _apply(self, row: Row, before: dict[str, str]) -> None:
        """Bring aliases and tags to where `row` puts them. Doing it twice changes nothing."""
        effects = _effects(row, before)
        for alias, version in effects.items():
            self._point(alias, version)
        after = {**before, **effects}
        touched = {version for alias in effects for version in (before.get(alias), effects[alias]) if version}
        for version in sorted(touched | {row.version}):
            stage = next((alias for alias in ALIASES if after.get(alias) == version), None)
            self._tag(version, row, stage or _LEFT_BY.get(row.action, "superseded"))
        self.client.set_registered_model_tag(self.model, _APPLIED, f"{row.seq} {row.hash}")

    def _point(self, alias: str, version: str | None) -> None:
        if version is None:
            self.client.delete_registered_model_alias(self.model, alias)
        else:
            self.client.set_registered_model_alias(self.model, alias, version)

    def _tag(self, version: str, row: Row, stage: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            for key, value in {"stage": stage, "stage_since": row.at, "ledger_seq": str(row.seq)}.items():
                self.client.set_model_version_tag(self.model, version, key, value)
        except MlflowException as error:
            # A version that someone deleted has no tags to set; the ledger keeps its history.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    @contextmanager
    def _moving(self, transition_id: str | None) -> Iterator[Row | None]:
        """Hold the lock with all earlier moves finished; yield the row that already has the id."""
        with self._lock():
            self._finish()
            yield self.ledger.find(transition_id) if transition_id else None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        path = self.ledger.path.with_name(f".{self.ledger.path.name}.lock")
        try:
            with FileLock(path, timeout=_LOCK_TIMEOUT_SECONDS):
                yield
        except Timeout:
            raise RolloutError(
                f"Another process has held {path} for {_LOCK_TIMEOUT_SECONDS:.0f} s while it moves an alias. Wait "
                "for it, or end it, and run again."
            ) from None

    def _repeated(self, row: Row, action: str, alias: str, version: str | None) -> Row:
        same = (row.model, row.action, row.alias) == (self.model, action, alias)
        if not same or version not in (None, row.version):
            raise RolloutError(
                f"Transition id {row.transition_id!r} already stands for row {row.seq} ({row.action} version "
                f"{row.version}, {row.alias}). Use a new id for a new move."
            )
        return row

    # What has to be true before a move

    def _checked_reason(self, version: str, reason: str, override: str | None) -> str:
        """The reason to record. Refuses a version that is missing, or that the gate did not let pass."""
        tags = self._version(version).tags
        gate = tags.get("gate")
        if gate in _OPEN_GATES:
            return reason
        if override:
            return f"{reason} (gate {gate or 'never judged'}, overridden: {override})"
        reasons = tags.get("gate.reasons", "")
        found = f"was refused by the gate: {reasons}" if gate == "refused" else "was never judged by the gate."
        raise RolloutError(
            f"Version {version} of {self.model} {found} Choose another version, or give a reason to override the gate; "
            "it will be recorded."
        )

    def _version_in(self, below: Stage, to: Stage, version: str | None, before: dict[str, str]) -> str:
        holder = before.get(below)
        if version is None and holder is None:
            raise RolloutError(f"{self.model} has no {below}, so nothing can become {to}. See `talktrack status`.")
        if version is not None and version != holder:
            held = _stage_of(version, before) or "no stage"
            raise RolloutError(
                f"Version {version} of {self.model} holds {held} and cannot become {to}: only the {below} can"
                + (f", which is version {holder}." if holder else ", and there is none.")
                + f" The order is {' → '.join(STAGES)}."
            )
        return str(holder)

    def _agreed_aliases(self, needed: Sequence[str]) -> dict[str, str]:
        """The aliases by the ledger; refuses if MLflow says otherwise of one that the move needs."""
        recorded, found = self._recorded_aliases(), self._mlflow_aliases()
        for alias in needed:
            if recorded.get(alias) != found.get(alias):
                raise RolloutError(
                    f"{_by_hand(alias, recorded.get(alias), found.get(alias))} Adopt the move or restore the alias "
                    f"of {self.model} first."
                )
        return recorded

    def _recorded_aliases(self) -> dict[str, str]:
        return aliases_after(self.ledger.rows(self.model))

    def _mlflow_aliases(self) -> dict[str, str]:
        return _stage_aliases(self._registered_model())

    # What MLflow says

    def _registered_model(self) -> RegisteredModel:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_registered_model(self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise RegistryError(
                f"There is no registered model {self.model} in {self.store.address}. Run a night first, or "
                "check `workspace` in talktrack.yaml."
            ) from None

    def _version(self, version: str) -> ModelVersion:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(self.model, version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RolloutError(f"{self.model} has no version {version!r}; its latest is {self._latest()}.") from None

    def _latest(self) -> str:
        versions = [int(found.version) for found in self.client.search_model_versions(f"name = '{self.model}'")]
        if not versions:
            raise RolloutError(f"{self.model} has no version yet. Run a night first.")
        return str(max(versions))

    def _alias_status(self, alias: str, version: str | None, recorded: str | None, rows: list[Row]) -> AliasStatus:
        tags = {} if version is None else dict(self._version(version).tags)
        entered = next((row for row in reversed(rows) if recorded and _moved_to(row, alias, recorded, rows)), None)
        return AliasStatus(
            alias=alias,
            version=version,
            ledger_version=recorded,
            since=entered.at if entered and version == recorded else None,
            actor=entered.actor if entered and version == recorded else None,
            reason=entered.reason if entered and version == recorded else None,
            policy_version=tags.get("policy_version"),
            gate=tags.get("gate"),
            value=tags.get("value"),
            url=None if version is None else self.store.version_url(self.model, version),
        )

    def _faults(self, registered: RegisteredModel, aliases: Sequence[AliasStatus], unfinished: int) -> Iterator[str]:
        try:
            self.ledger.verify(_last_applied(registered))
        except LedgerError as error:
            yield str(error)
        if unfinished:
            yield f"{unfinished} recorded move(s) are unfinished; the next move or `reconcile` finishes them."
            return
        for found in aliases:
            if not found.agrees:
                yield _by_hand(found.alias, found.ledger_version, found.version)


def aliases_after(rows: Sequence[Row]) -> dict[str, str]:
    """Where the aliases point after these moves of one model, oldest first."""
    aliases: dict[str, str] = {}
    for row in rows:
        for alias, version in _effects(row, aliases).items():
            if version is None:
                aliases.pop(alias, None)
            else:
                aliases[alias] = version
    return aliases


def _effects(row: Row, before: dict[str, str]) -> dict[str, str | None]:
    """Every alias that a move sets or takes away (None), given where the aliases pointed before."""
    effects: dict[str, str | None] = {row.alias: row.to_version}
    if row.action == "promote":
        below = STAGES[ALIASES.index(row.alias) - 1]
        if before.get(below) == row.version:
            effects[below] = None
        if row.alias == "champion":
            effects[PREVIOUS] = row.from_version
    if row.action == "rollback":
        effects[PREVIOUS] = None
    return effects


def _moved_to(row: Row, alias: str, version: str, rows: Sequence[Row]) -> bool:
    before = aliases_after([earlier for earlier in rows if earlier.seq < row.seq])
    return _effects(row, before).get(alias) == version


def _stage_of(version: str, aliases: dict[str, str]) -> str | None:
    return next((alias for alias in ALIASES if aliases.get(alias) == version), None)


def _stage_aliases(registered: RegisteredModel) -> dict[str, str]:
    # search_registered_models and search_model_versions give no aliases on SQL stores; the single model does.
    return {alias: str(version) for alias, version in registered.aliases.items() if alias in ALIASES}


def _last_applied(registered: RegisteredModel) -> tuple[int, str]:
    """Number and hash of the last finished row; (0, GENESIS) before the first."""
    seq, _, found = registered.tags.get(_APPLIED, f"0 {GENESIS}").partition(" ")
    return int(seq), found


def _by_hand(alias: str, recorded: str | None, found: str | None) -> str:
    def place(version: str | None) -> str:
        return "nothing" if version is None else f"version {version}"

    return f"Alias `{alias}` was moved by hand: the ledger says {place(recorded)}, MLflow says {place(found)}."


def _require_difference(model: str, alias: str, recorded: str | None, found: str | None) -> None:
    if recorded == found:
        raise RolloutError(f"Alias `{alias}` of {model} is where the ledger says; there is nothing to settle.")


def open_rollout(store: MlflowStore, ledger_file: Path, model: str) -> Rollout:
    """The rollout of `model`, with its ledger in `ledger_file`."""
    return Rollout(store, RolloutLedger(ledger_file), model)
