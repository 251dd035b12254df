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
    """One image cannot be encoded; `reason` is one of the words of `images.REASONS`."""

    exit_code = 3

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
