"""The features layer: the utterance encoder, and one vector per distinct utterance."""

import dagster as dg

from orchestration.resources import JobRunner, Workspace
from orchestration.settings import TalktrackSettings
from rl.shown_counts import without_small


def build_features_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """Utterance vectors."""

    @dg.asset(
        key=["features", "utterance_vectors"],
        deps=[["logs", "turns"]],
        group_name="features",
        kinds={"python", "safetensors"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    def utterance_vectors(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        jobs: dg.ResourceParam[JobRunner],
    ) -> dg.MaterializeResult:
        """One float16 vector per distinct scrubbed utterance, keyed by the hash of its content.

        A night encodes only what is new. Bytes: `features/<encoder id>/`, without what left the landing.
        """
        with workspace.step():
            outcome = jobs.run(
                context,
                "rl.encoders.encode",
                stage="encode utterances",
                inputs=workspace.paths.landing,
                output=workspace.paths.features,
                settings=encode_settings(workspace.settings),
            )
        return dg.MaterializeResult(
            metadata={"dagster/uri": str(workspace.paths.features), **without_small(outcome.result)}
        )

    return [utterance_vectors]


def encode_settings(settings: TalktrackSettings) -> dict[str, object]:
    """Settings of the encode job."""
    return {"encoder": settings.encoder.model_dump(mode="json"), "encoders": str(settings.paths.encoders)}
