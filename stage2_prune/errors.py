"""Errors of stage 2 that a user can act on; each class holds the exit code of its command."""

from configs.errors import ConfigError, EncodeOnceError


class PruneError(EncodeOnceError):
    """Base class of every error of stage 2."""


class PrunerMisused(PruneError, ConfigError):
    """A pruner or a budget cannot do what the config asks of it."""

    exit_code = 2


class Infeasible(PruneError, ConfigError):
    """A method cannot meet a budget on this model. The cell is reported beside the results and never run at another number."""

    exit_code = 2


class OtherRun(PruneError, ConfigError):
    """The output folder holds results of other settings, and `--overwrite` was not given."""

    exit_code = 2


class UnknownImage(PruneError, ConfigError):
    """The store has no row for an image, or no features of it."""

    exit_code = 2


class CannotShow(PruneError, ConfigError):
    """No picture can be made of an image, or with an image processor."""

    exit_code = 2


class NotCaptured(PruneError):
    """A forward of the language model cannot run as a CUDA graph."""

    exit_code = 2


class NothingToAsk(PruneError):
    """No question is about an image that could be encoded."""

    exit_code = 3


class StoreMismatch(PruneError):
    """The store's features are not the features that this checkpoint would make."""

    exit_code = 4


class WeightsMismatch(PruneError):
    """Weights on disk are not the weights that this model or pruner needs."""

    exit_code = 4


class StockDiffers(PruneError):
    """The installed transformers does not compute what the layer loop computes in its place."""

    exit_code = 4


class RunLocked(PruneError):
    """Another process writes predictions into the same folder."""

    exit_code = 6


class MemoryTooSmall(PruneError):
    """The memory of the device does not carry the work."""

    exit_code = 7


class DamagedRun(PruneError):
    """A file of a run is not as it was written: it is damaged, cut or unreadable, or it belongs to another run."""

    exit_code = 4


class NotComparable(PruneError):
    """Results were set side by side that were not made alike."""

    exit_code = 4


class ResultsMissing(PruneError):
    """There are no predictions where results were expected."""

    exit_code = 5


class NotTrained(PruneError):
    """A trained pruner has no weights yet."""

    exit_code = 5


class NotTaught(PruneError):
    """The teacher's signals lack what a training needs."""

    exit_code = 5


class NonFiniteTeacher(PruneError):
    """The unpruned language model gives no numbers for a question."""

    exit_code = 3


class HubRefused(PruneError):
    """The hub cannot be reached, lacks what was asked for, or does not let this user have it."""

    exit_code = 5


class LeakedImages(PruneError, ConfigError):
    """Images of the test split are among those that a training sees."""

    exit_code = 2


class NotExtracted(PruneError):
    """The store lacks features that stage 2 needs."""

    exit_code = 5


class ReferenceFailed(PruneError):
    """The process that runs the full model ended with an error; this error passes its exit code on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(
            f"the full model could not answer (exit code {exit_code}, its message is above): the baseline needs the "
            "whole checkpoint and the images; the other modes were not run"
        )
        self.exit_code = exit_code if exit_code > 0 else 1


class WorkerFailed(PruneError):
    """A process that shared the work ended before its work was done; this error passes the exit code of its error on."""

    def __init__(self, exit_code: int) -> None:
        cause = (
            "with an error, its message is above" if exit_code > 0 else f"by signal {-exit_code}, as for want of memory"
        )
        super().__init__(
            f"a worker ended {cause}: run the same command again, which computes no answer twice; fewer "
            "--workers need less memory"
        )
        self.exit_code = exit_code if exit_code > 0 else 75
