"""What can go wrong while encoding."""

from configs.errors import EncodeOnceError


class ExtractError(EncodeOnceError):
    """Base of this package's errors."""


class UnsupportedModel(ExtractError):
    """A tower, family or option that no file of this package knows."""

    exit_code = 2


class TooManyFailures(ExtractError):
    """More images could not be read than the config tolerates."""

    exit_code = 3


class WrongWeights(ExtractError):
    """A checkpoint's tensors do not fit its config."""

    exit_code = 4


class ChangedImage(ExtractError):
    """An image file is not the one that was encoded."""

    exit_code = 4


class BadImage(ExtractError):
    """One image cannot be encoded; `reason` is one of the words of `images.REASONS`, with what else must be `told`."""

    exit_code = 3

    def __init__(self, reason: str, detail: str, told: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = f"{reason} ({told})" if told else reason


class UnusableImages(ExtractError):
    """`data.images` is nothing that can be read in place, or several things at once."""

    exit_code = 2


class DamagedArchive(ExtractError):
    """A tar or parquet file is not whole."""

    exit_code = 4


class ReaderMissing(ExtractError):
    """The library that reads a kind of input is not installed."""

    exit_code = 5


class DeviceTooSmall(ExtractError):
    """Not even one image fits into the device's memory."""

    exit_code = 7


class EngineMissing(ExtractError):
    """The library of an engine is not installed."""

    exit_code = 5


class WorkerFailed(ExtractError):
    """A worker ended with an error, or died too often on one shard."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
