"""Errors of stage 2 that a user can act on."""

from configs.errors import ConfigError, EncodeOnceError


class PruneError(EncodeOnceError):
    """Base of every error of stage 2."""


class PrunerMisused(PruneError, ConfigError):
    """A pruner or a budget that cannot do what the config asks of it."""

    exit_code = 2


class Infeasible(PruneError, ConfigError):
    """A budget that a method cannot meet on this model; reported beside the results, never met by another number."""

    exit_code = 2


class OtherRun(PruneError, ConfigError):
    """The output folder holds results of other settings, and `--overwrite` was not given."""

    exit_code = 2


class UnknownImage(PruneError, ConfigError):
    """An image that the store has no row for, or no features."""

    exit_code = 2


class CannotShow(PruneError, ConfigError):
    """An image, or an image processor, that no picture can be made of."""

    exit_code = 2


class NothingToAsk(PruneError):
    """No question is about an image that could be encoded."""

    exit_code = 3


class StoreMismatch(PruneError):
    """The store's features are not those that this checkpoint would make."""

    exit_code = 4


class WeightsMismatch(PruneError):
    """Weights on disk are not those that this model or pruner needs."""

    exit_code = 4


class StockDiffers(PruneError):
    """The installed transformers does not do what this project makes anew of it, the layer loop."""

    exit_code = 4


class RunLocked(PruneError):
    """Another process writes predictions into the same folder."""

    exit_code = 6


class DamagedRun(PruneError):
    """A file of a run is not as it was written: damaged, cut, unreadable, or another's."""

    exit_code = 4


class NotComparable(PruneError):
    """Results that were not made alike, set side by side."""

    exit_code = 4


class ResultsMissing(PruneError):
    """There are no predictions where results were expected."""

    exit_code = 5


class NotTrained(PruneError):
    """A trained pruner has no weights yet."""

    exit_code = 5


class NotExtracted(PruneError):
    """Features that stage 2 needs are not in the store."""

    exit_code = 5


class ReferenceFailed(PruneError):
    """The process that runs the full model ended with an error; its exit code is passed on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(
            f"the full model could not answer (exit code {exit_code}, its message is above): the baseline needs the "
            "whole checkpoint and the images; the other modes were not run"
        )
        self.exit_code = exit_code if exit_code > 0 else 1


class WorkerFailed(PruneError):
    """A process of a sweep ended before its work did; the exit code of its error is passed on."""

    def __init__(self, exit_code: int) -> None:
        how = (
            "with an error, its message is above" if exit_code > 0 else f"by signal {-exit_code}, as for want of memory"
        )
        super().__init__(
            f"a worker of the sweep ended {how}: run the same command again, which computes no answer twice; fewer "
            "--workers need less memory"
        )
        self.exit_code = exit_code if exit_code > 0 else 75
