"""Errors of `registry`, and nothing else. They follow the rules of `rl.errors`: what, where, what next."""

from rl.errors import TalktrackError


class RegistryError(TalktrackError):
    """The MLflow store cannot be reached, or does not hold what was asked for."""


class RolloutError(TalktrackError):
    """A move between stages is not allowed, or was not finished."""


class LedgerError(TalktrackError):
    """The rollout ledger was changed from outside, or is asked to say two things under one id."""
