"""Errors of `rl`, and nothing else.

Every message says what was found, where, and what to do next. Customer text and ids never appear in one.

::

    TalktrackError              anything a user can put right; shown without a traceback
    ├── SettingsError           a setting is missing, unknown or out of range
    ├── DataError               a file, table or array does not keep its contract
    │   ├── PropensityError     a propensity is missing, zero, negative or above one
    │   └── SupportError        the evaluation policy never does what the log did
    ├── EncoderError            a text encoder's files are missing or are not the pinned ones
    ├── PolicyError             a stored policy cannot be loaded or does not fit the observations
    └── TrainingError           a trainer could not produce a policy (diverged, trained no step)
"""


class TalktrackError(Exception):
    """A fault that its reader can put right. The message has three parts: what, where, what next."""


class SettingsError(TalktrackError):
    """A setting is missing, unknown or out of range."""


class DataError(TalktrackError):
    """A file, table or array does not keep its contract."""


class PropensityError(DataError):
    """A propensity is missing, zero, negative or above one."""


class SupportError(DataError):
    """The evaluation policy gives no probability to anything in the log."""


class EncoderError(TalktrackError):
    """The files of a text encoder are missing or are not the pinned ones."""


class PolicyError(TalktrackError):
    """A stored policy cannot be loaded, or does not fit the observations it is given."""


class TrainingError(TalktrackError):
    """A trainer could not produce a policy."""
