"""Asset checks that are not dbt tests. Each is named as the statement that should be true."""

import json
from collections import Counter
from typing import Any

import dagster as dg

from orchestration.aggregates import last_outcome, places
from orchestration.ingest.landing import broken_files, committed_files
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import read_state
from orchestration.zones import faults_in_released, misplaced_ids
from registry.privacy.recertify import recertify
from registry.privacy.release import released_records, verify_releases
from rl.datasets.transitions import TransitionSet
from rl.errors import TalktrackError


def build_checks(settings: TalktrackSettings) -> list[dg.AssetChecksDefinition]:
    """All native checks."""

    @dg.asset_check(asset=["logs", "turns"], blocking=True)
    def few_records_are_quarantined(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """Of the records that the warehouse has not taken in yet, at most the configured share is bad."""
        paths, limit = workspace.paths, workspace.settings.logs.max_quarantined_share
        taken_in = set(read_state(paths.root).sources)
        # By path the latest reading counts: a file that was mended on a later day has put its first one right.
        latest = {mark["path"]: mark for mark in committed_files(paths.landing)}
        new = [mark for mark in latest.values() if mark["source"] not in taken_in]
        n_bad, n_records = sum(m["n_quarantined"] for m in new), sum(m["n_records"] for m in new)
        share = n_bad / max(n_records, 1)
        worst = sorted(new, key=lambda m: -m["n_quarantined"])[:5]
        return dg.AssetCheckResult(
            passed=share <= limit,
            description=(
                f"{n_bad:,} of {n_records:,} new records ({share:.2%}) are in quarantine; the limit is {limit:.2%}. "
                f"{_worst(new)}File, line, field and reason of each: {paths.quarantine}. Mend the source and run "
                "again, or raise logs.max_quarantined_share if these records can be done without."
            ),
            metadata={
                "quarantined_share": share,
                "limit": limit,
                "worst_files": dg.MetadataValue.json(
                    {m["path"]: m["n_quarantined"] for m in worst if m["n_quarantined"]}
                ),
            },
        )

    @dg.asset_check(asset=["logs", "turns"])
    def source_files_are_whole(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """No file is cut off or damaged: an upload that broke off, or one that is still going on. Severity WARN."""
        broken = broken_files(workspace.paths.landing)
        return dg.AssetCheckResult(
            passed=not broken,
            severity=dg.AssetCheckSeverity.WARN,
            description=(
                "The readable part is landed; its dialogues are incomplete and enter no value. Put the whole file "
                "back: the next night reads it again."
                if broken
                else None
            ),
            metadata={"broken_files": dg.MetadataValue.json(broken)},
        )

    @dg.asset_check(asset=["datasets", "transitions"], blocking=True)
    def propensities_are_probabilities(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """Every logged propensity is missing or in (0, 1]."""
        data = TransitionSet.open(workspace.paths.datasets / "transitions")
        logged = data.propensities[data.propensities == data.propensities]
        wrong = int(((logged <= 0) | (logged > 1)).sum())
        return dg.AssetCheckResult(
            passed=wrong == 0, metadata={"wrong": wrong, "logged_share": len(logged) / max(data.n_steps, 1)}
        )

    @dg.asset_check(asset=["datasets", "transitions"])
    def rewards_are_finite_and_not_all_zero(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """There is something to learn: some dialogue earned something."""
        data = TransitionSet.open(workspace.paths.datasets / "transitions")
        rewarded = float((data.returns != 0).mean())
        return dg.AssetCheckResult(
            passed=rewarded > 0, severity=dg.AssetCheckSeverity.WARN, metadata={"rewarded_share": rewarded}
        )

    @dg.asset_check(asset=["release", "registered_policy"])
    def a_candidate_passed_the_gate(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """At least one candidate may become challenger. A refusal is a result, not a fault: severity WARN."""
        verdicts = json.loads((workspace.paths.root / "release.json").read_text())["verdicts"]
        return dg.AssetCheckResult(
            passed=any(v["passed"] for v in verdicts),
            severity=dg.AssetCheckSeverity.WARN,
            metadata={v["candidate"]: "; ".join(v["reasons"]) for v in verdicts},
        )

    @dg.asset_check(asset=["aggregates", "private_release"], blocking=True)
    def the_privacy_ledger_and_the_releases_are_whole(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """The ledger's chain holds, and every file of every release is the one that was booked."""
        try:
            n_releases = verify_releases(places(workspace.settings))
        except TalktrackError as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        return dg.AssetCheckResult(passed=True, metadata={"releases": n_releases})

    @dg.asset_check(asset=["aggregates", "private_release"], blocking=True)
    def noise_is_certified_for_what_was_booked(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """OpenDP certifies the recorded noise of every release again, and it adds up to what the ledger booked."""
        where = places(workspace.settings)
        try:
            certified = {str(r.window): recertify(r) for r in released_records(where.released)}
        except TalktrackError as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        return dg.AssetCheckResult(passed=True, metadata={f"rho/{window}": rho for window, rho in certified.items()})

    @dg.asset_check(asset=["aggregates", "private_release"])
    def the_window_that_is_due_was_released(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """No plan or budget refused it. A refusal is a result, not a fault: severity WARN."""
        outcome = last_outcome(workspace.paths)
        return dg.AssetCheckResult(
            passed=outcome is None or outcome.state != "not_released",
            severity=dg.AssetCheckSeverity.WARN,
            description=outcome.reason if outcome else None,
        )

    @dg.asset_check(asset=["aggregates", "aggregate_files"], blocking=True)
    def nobody_is_in_the_released_zone(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        """No released file holds an id or a column of single people, and no other file a pseudonym out of its store."""
        paths = workspace.paths
        faults = [f"released/{fault}" for fault in faults_in_released(paths.released, paths.marts)]
        faults += [str(fault) for fault in misplaced_ids(paths.root)]
        return dg.AssetCheckResult(
            passed=not faults,
            description=(
                f"{len(faults)} file(s) hold what must not be there:\n{chr(10).join(faults)}\nNothing was exported. "
                "Report it; remove the file once it is understood."
                if faults
                else None
            ),
            metadata={"faults": len(faults)},
        )

    return [
        few_records_are_quarantined,
        source_files_are_whole,
        the_privacy_ledger_and_the_releases_are_whole,
        noise_is_certified_for_what_was_booked,
        the_window_that_is_due_was_released,
        nobody_is_in_the_released_zone,
        propensities_are_probabilities,
        rewards_are_finite_and_not_all_zero,
        a_candidate_passed_the_gate,
    ]


def _worst(marks: list[dict[str, Any]]) -> str:
    """The most frequent fault of these files and the file that has most; nothing without one."""
    reasons: Counter[str] = Counter()
    for mark in marks:
        reasons.update(mark["quarantine_counts"])
    if not reasons:
        return ""
    ((reason, n),) = reasons.most_common(1)
    file = max(marks, key=lambda mark: mark["n_quarantined"])["path"]
    return f"Most often ({n:,}): {reason}. Most of them in {file}. "
