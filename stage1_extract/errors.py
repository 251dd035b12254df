"""The errors of stage 1, each with the exit code of its command."""

from configs.errors import EncodeOnceError


class ExtractError(EncodeOnceError):
    """Base class of this package's errors."""


class UnsupportedModel(ExtractError):
    """The model has a tower, a family or an option that no file of this package serves."""

    exit_code = 2


class TooManyFailures(ExtractError):
    """More images could not be encoded than the config tolerates."""

    exit_code = 3


class WrongWeights(ExtractError):
    """The checkpoint's tensors do not fit its config."""

    exit_code = 4


class ChangedImage(ExtractError):
    """An image file is not the file that was encoded."""

    exit_code = 4


class BadImage(ExtractError):
    """One image cannot be encoded."""

    exit_code = 3

    def __init__(self, reason: str, detail: str, addition: str = "") -> None:
        """Make the error.

        Args:
            reason: A key of `images.REASONS`; it is recorded in the commit log.
            detail: What the message says beside the reason: which image, and its measure.
            addition: What the commit log records beside the reason.

        """
        super().__init__(f"{reason}: {detail}")
        self.reason = f"{reason} ({addition})" if addition else reason


class GoneImage(BadImage):
    """An image of a store cannot be read any more: exit code 5 if its file is missing, 4 if its file is not usable."""

    def __init__(self, bad: BadImage, meaning: str, name: str, root: object) -> None:
        """Make the error: `bad` says why the image `name` cannot be read below `root`, and `meaning` says so in words."""
        advice = "bring it back, or name the images that the store was made from with --data.images"
        if bad.reason == "too_many_pixels":
            advice = "raise --extract.max_pixels"
        ExtractError.__init__(
            self, f"expected the image {name} below {root} to encode it again, but {meaning} ({bad.reason}): {advice}"
        )
        self.reason = bad.reason
        self.exit_code = 5 if bad.reason == "missing_file" else 4


class UnusableImages(ExtractError):
    """`data.images` cannot be read in place, or holds several kinds of input."""

    exit_code = 2


class DamagedArchive(ExtractError):
    """A tar or parquet file is damaged or incomplete."""

    exit_code = 4


class ReaderMissing(ExtractError):
    """The library that reads this kind of input is not installed."""

    exit_code = 5


class InexactDevice(ExtractError):
    """On this device an image's bits depend on the other images of its call, at the number of images that a store records."""

    exit_code = 4


class DeviceTooSmall(ExtractError):
    """The device's memory is too small for the smallest batch that may be encoded."""

    exit_code = 7


class NonFiniteLoss(ExtractError):
    """A training of an embedded checkpoint came to a loss that is infinite or no number."""

    exit_code = 3


class EngineMissing(ExtractError):
    """The library of the engine is not installed."""

    exit_code = 5


class WorkerFailed(ExtractError):
    """A worker ended with an error, or workers died too often on one shard."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
