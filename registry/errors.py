"""Errors of `registry`, and nothing else. They follow the rules of `rl.errors`: what, where, what next."""

from rl.errors import TalktrackError


class RegistryError(TalktrackError):
    """The MLflow store cannot be reached, or does not hold what was asked for."""


class RolloutError(TalktrackError):
    """A move between stages is not allowed, or was not finished."""


class LedgerError(TalktrackError):
    """A ledger was changed from outside, cannot be written, or is asked to say two things under one id."""


class CertificationError(TalktrackError):
    """Noise cannot be certified for what it was asked to protect; nothing was drawn."""


class BudgetExceededError(TalktrackError):
    """A release or an evaluation would cost more privacy than its window has left; nothing was drawn."""


class PlanError(TalktrackError):
    """A private release with these settings would be more noise than figures."""


class ReleaseError(TalktrackError):
    """A private release cannot be made, or its files are not those that were released."""


class ReleaseLostError(ReleaseError):
    """A release was cut off after its budget was booked and before its figures were kept: the window has none."""


class ExportRefusedError(RegistryError):
    """What was asked for lies in the restricted zone and stays there."""
