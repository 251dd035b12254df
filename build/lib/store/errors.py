"""The errors about a store, a checkpoint or a list of questions, each with its exit code."""

from configs.errors import EncodeOnceError


class StoreError(EncodeOnceError):
    """Base of this package's errors. Raised itself, it means that a store is not the store that the caller asked for."""

    exit_code = 4


class StoreMissing(StoreError):
    """There is no store yet, or it is not complete yet."""

    exit_code = 5


class CheckpointMissing(StoreError):
    """A checkpoint is neither a local folder nor in the cache of downloads."""

    exit_code = 5


class UnusableCheckpoint(CheckpointMissing):
    """A checkpoint cannot be read as it is: it must be converted, or fetched in another form."""


class CustomCode(StoreError):
    """A checkpoint brings its own code, and the config does not allow that code to run."""

    exit_code = 2


class DamagedCheckpoint(StoreError):
    """Files of a checkpoint are damaged or do not fit together."""

    exit_code = 4


class GenerationRefused(StoreError):
    """A checkpoint's generation config asks for answers that cannot be given from cached features."""

    exit_code = 2


class UnsupportedProcessor(StoreError):
    """A checkpoint's image processor has no implementation that uses Pillow."""

    exit_code = 2


class DataMissing(StoreError):
    """Images or questions are not where the config says."""

    exit_code = 5


class InvalidQuestions(StoreError):
    """A file of questions has rows that cannot be used."""

    exit_code = 2


class TargetExists(StoreError):
    """The output exists already, and nothing is replaced without being asked to."""

    exit_code = 2


class NonFinite(StoreError):
    """Features contain NaN or infinity."""

    exit_code = 3


class IntegrityError(StoreError):
    """Bytes in the store are not the bytes that were committed."""

    exit_code = 4


class FingerprintMismatch(StoreError):
    """Features were made from another model, processor or setting than the caller asks for."""

    exit_code = 4


class RowUnavailable(StoreError):
    """A row was never committed, or its image could not be encoded."""

    exit_code = 4


class StoreLocked(StoreError):
    """Another process is writing to the store."""

    exit_code = 6


class NoSpace(StoreError):
    """The disk is full, or may not be written to."""

    exit_code = 7


class ArchiveReadOnly(StoreError):
    """An archive was to be written to; archives can only be read or unpacked."""

    exit_code = 7


class LeaseLost(StoreError):
    """Another worker has taken over the shard that this process was working on."""

    exit_code = 6
