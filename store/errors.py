"""What can go wrong with a store, a checkpoint or a list of questions."""

from configs.errors import EncodeOnceError


class StoreError(EncodeOnceError):
    """Base of this package's errors; on its own, a store that is not the one that is asked for."""

    exit_code = 4


class StoreMissing(StoreError):
    """There is no store, or not all of it yet."""

    exit_code = 5


class CheckpointMissing(StoreError):
    """A checkpoint is neither a folder nor in the cache."""

    exit_code = 5


class UnusableCheckpoint(CheckpointMissing):
    """A checkpoint is of a kind that has to be converted, or fetched in another form, before it can be read."""


class CustomCode(StoreError):
    """A checkpoint brings code of its own, and nobody said that it may run."""

    exit_code = 2


class DamagedCheckpoint(StoreError):
    """Files of a checkpoint are not what they should be."""

    exit_code = 4


class GenerationRefused(StoreError):
    """A checkpoint's generation config asks for answers that cannot be given from cached features."""

    exit_code = 2


class UnsupportedProcessor(StoreError):
    """A checkpoint's image processor has no implementation on Pillow."""

    exit_code = 2


class DataMissing(StoreError):
    """Images or questions are not where the config says."""

    exit_code = 5


class InvalidQuestions(StoreError):
    """Rows of a questions file cannot be used."""

    exit_code = 2


class TargetExists(StoreError):
    """The output is there already, and may not be replaced silently."""

    exit_code = 2


class NonFinite(StoreError):
    """Features contain NaN or infinity."""

    exit_code = 3


class IntegrityError(StoreError):
    """Bytes are not those that were committed."""

    exit_code = 4


class FingerprintMismatch(StoreError):
    """Features were made by something else than what is asked for."""

    exit_code = 4


class RowUnavailable(StoreError):
    """A row that was never committed, or whose image could not be encoded."""

    exit_code = 4


class StoreLocked(StoreError):
    """Another process is writing."""

    exit_code = 6


class NoSpace(StoreError):
    """The disk is full or read-only."""

    exit_code = 7


class ArchiveReadOnly(StoreError):
    """An archive is read and unpacked, never written to."""

    exit_code = 7


class LeaseLost(StoreError):
    """A shard is another worker's by now."""

    exit_code = 6
