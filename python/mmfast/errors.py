"""Every error that mmfast raises on purpose, each with the exit code its command ends with.

Argument errors are the built-in `ValueError`, `TypeError` and `IndexError`; errors of the operating
system are the matching `OSError`. The classes here are for what those cannot say.
"""


class MmfastError(Exception):
    """Base of all errors of our own. The text says what failed, where, and what to do next."""

    exit_code = 1


class ConfigError(MmfastError, ValueError):
    """A configuration has an unknown key or a value of the wrong type or range."""

    exit_code = 2


class UsageError(MmfastError, ValueError):
    """A command was given arguments or paths it cannot use."""

    exit_code = 2


class CorruptDataError(MmfastError):
    """A file's content contradicts its format or its checksum."""

    exit_code = 3


class FormatVersionError(CorruptDataError):
    """A file is of a format or version that this build does not read."""


class BadRecordError(MmfastError):
    """One record of a job's input cannot be used. Jobs count it under `reason` and go on.

    Attributes:
        reason: short, stable key under which the job's report counts it, e.g. `image_corrupt`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class VocabularyMismatchError(MmfastError):
    """Two things that must share a vocabulary (dataset, checkpoint, tokenizer) do not."""


class StateMismatchError(MmfastError):
    """A saved data state belongs to another stream (other data, window, capacity or objective)."""


class CheckpointError(MmfastError):
    """A checkpoint cannot be written; older ones are whole, so the run can go on from them."""


class TrainingError(MmfastError):
    """Training cannot go on: memory is short, a process is gone. The text says what to change."""


class InternalError(MmfastError):
    """A bug of ours: the text says what to report."""


class ForeignFormatWarning(UserWarning):
    """A dataset is not as megatron-core writes it, but was understood; the text says what was found.

    `warnings.simplefilter("error", ForeignFormatWarning)` makes it an error.
    """
