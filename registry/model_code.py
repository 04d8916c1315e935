"""The MLflow model of a policy, as code: MLflow copies this file into the model and runs it to load it.

Here: the border between MLflow and `registry.bundle`, as thin as it can be. Not here: deciding
(`registry.bundle`), logging and registering (`registry.publish`). Nothing else imports this module.
"""

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext
from pydantic import BaseModel, ValidationError

from registry.bundle import Decision, open_bundle
from rl.encoders.dialogue import DialogueContext
from rl.errors import PolicyError


class Turn(BaseModel):
    """One turn of the dialogue so far."""

    speaker: str
    """`agent` or `customer`."""
    text: str
    strategies: list[str] | None = None
    """Of an agent turn: its strategies, where they are known."""


class Context(BaseModel):
    """A dialogue before an agent turn. MLflow makes the model's signature from these fields.

    It says what `rl.encoders.dialogue.DialogueContext` says, in the types that MLflow has.
    """

    dialogue_id: str
    turns: list[Turn]
    segment: str | None = None
    channel: str | None = None
    locale: str | None = None
    eligible_strategies: list[str] | None = None
    """What may be chosen; None for everything in the catalogue."""


class PolicyModel(PythonModel):  # type: ignore[misc]
    """Answers a list of contexts with a list of decisions, as `registry.bundle.Bundle.decide` does."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle that was logged with the model, and check its files."""
        from pathlib import Path

        self.bundle = open_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: PythonModelContext, model_input: list[Context]) -> list[Decision]:
        """One decision for each context, in order."""
        return self.bundle.decide([_dialogue_context(row, given) for row, given in enumerate(model_input)])


def _dialogue_context(row: int, given: Context) -> DialogueContext:
    try:
        return DialogueContext.model_validate(given.model_dump(exclude_none=True))
    except ValidationError as error:
        # Only the field is named: the values are what customers wrote.
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise PolicyError(f"Context {row}, field `{field}`: {first['msg']}. Correct the request.") from None


mlflow.models.set_model(PolicyModel())
