"""The data set layer: published marts and utterance vectors → a transition set that trainers map into memory."""

import dagster as dg

from orchestration.resources import JobRunner, Workspace
from orchestration.settings import TalktrackSettings
from orchestration.workspace import ID_FILE, code_revision, configured_catalogue
from rl.encoders.encoder import encoder_folder
from rl.shown_counts import without_small


def build_datasets_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """The transition set of the night."""

    @dg.asset(
        key=["datasets", "transitions"],
        deps=[["warehouse", "mart_files"], ["features", "utterance_vectors"]],
        group_name="datasets",
        kinds={"python", "safetensors"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
    )
    def transitions(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        jobs: dg.ResourceParam[JobRunner],
    ) -> dg.MaterializeResult:
        """One row per agent turn of the mature, complete dialogues of the last window.

        Bytes: datasets/transitions/, a manifest and contiguous arrays, replaced as a whole.
        """
        with workspace.step():
            outcome = jobs.run(
                context,
                "rl.datasets.build",
                stage="build data set",
                inputs=workspace.paths.root,
                output=workspace.paths.datasets / "transitions",
                settings=build_settings(workspace.settings),
            )
        return dg.MaterializeResult(
            metadata={
                "dagster/uri": str(workspace.paths.datasets / "transitions"),
                **without_small({"dagster/row_count": outcome.result["n_steps"]}),
                **{k: _metadata(v) for k, v in without_small(outcome.result).items() if v is not None},
            }
        )

    return [transitions]


def build_settings(settings: TalktrackSettings) -> dict[str, object]:
    """Settings of the build job."""
    configured_catalogue(settings)  # refreshes the id file that the job reads
    return {
        "dataset": settings.dataset.model_dump(mode="json"),
        "scrubbing": settings.scrubbing.model_dump(mode="json"),
        "encoder": str(encoder_folder(settings.encoder, settings.paths.encoders)),
        "catalogue": str(settings.paths.root / ID_FILE),
        "code_revision": code_revision(),
    }


def _metadata(value: object) -> object:
    return dg.MetadataValue.json(value) if isinstance(value, dict | list) else value
