"""The figures that were measured before, as the rows of a run are called."""

from dataclasses import dataclass

CARD = "NVIDIA H200 of 141 GB"
_TOWER = {
    1: (56, 60, 31), 8: (486, 457, 85), 32: (915, 881, 105), 64: (938, 892, 103),
}  # fmt: skip
"""Images per second by images per call: bare, `encode`, what a worker gets."""
_KEPT = (576, 192, 128, 64, 32)
_PREFILL = {1: (40.3, 39.7, 25.1, 39.7, 26.1), 8: (156, 64, 50, 37, 41), 32: (639, 249, 188, 125, 94)}
"""Milliseconds by questions at once."""
_SPEED_UP = {1: 1.01, 8: 4.17, 32: 5.10}
_SELECTORS = {
    "zoo_prune": 122, "scope": 58, "mm_tok": 39, "cd_pruner": 39, "prune_sid": 30, "div_prune": 23, "vis_pruner": 9.2,
    "holov": 6.6, "nuwa": 5.3, "average_pooling": 2.8, "vision_trim": 2.7, "pru_merge": 2.0, "vision_zip": 1.6,
    "vscan": 1.5, "trim": 1.1, "g_prune": 0.9, "hi_prune": 0.7, "learned_scorer": 0.7,
}  # fmt: skip
"""Milliseconds of one image alone, at 192 tokens."""
_SELECTORS_OF_32 = {"vision_trim": 1.5, "vision_zip": 1.0, "vscan": 0.8, "trim": 0.5}


@dataclass(frozen=True)
class Figure:
    """One figure that was measured before."""

    value: float | str
    unit: str


def bare(images: int) -> str:
    """Name the row of tower and projector on tensors that are on the device."""
    return f"bare tower + projector, {images} a call"


def encoded(images: int) -> str:
    """Name the row of `encode`."""
    return f"`encode`, with the arrays beside the features, {images} a call"


def launched(images: int) -> str:
    """Name the row of what a worker launches, before features are copied to host memory."""
    return f"from pixels in host memory, features on the device (`OpenEncoder.launch`), {images} a call"


def worker_gets(images: int) -> str:
    """Name the row of what a worker gets."""
    return f"the same, features in host memory (`OpenEncoder.encode`), {images} a call"


def prefill(questions: int, kept: int) -> str:
    """Name the row of a prefill."""
    return f"{kept} visual tokens, {questions} at once"


def bound(questions: int, kept: int) -> str:
    """Name the row of the least that a prefill can take."""
    return f"{kept} visual tokens, roofline, {questions} at once"


def speed_up(questions: int, kept: int, kind: str) -> str:
    """Name the row of a speed-up."""
    return f"times as fast with {kept} visual tokens, {kind}, {questions} at once"


def evaluating(kept: int, answer: int, questions: int) -> str:
    """Name the row of an evaluation."""
    return f"{kept} visual tokens, {answer} tokens an answer, {questions} at once"


def selecting(method: str, images: int) -> str:
    """Name the row of a method."""
    return f"{method}, {images} at once"


def parity(images: int) -> str:
    """Name the row of a parity run."""
    return f"`tower_batch` {images}"


DIGEST = "identifying the weights of the language model"
STEP = "10 questions about 5 images"
SHARE = "share of the FLOPs bound that is reached"
FORWARD, BACKWARD = "forward of it", "backward of it"
LAYER = "one layer of the tower, 1 at once"
_STAGE1 = {
    ("stage1", name(images)): Figure(rate, "images/s")
    for number, name in enumerate((bare, encoded, worker_gets))
    for images, rates in _TOWER.items()
    for rate in (rates[number],)
}
BEFORE: dict[tuple[str, str], Figure] = {
    **_STAGE1,
    ("extract", "decode + preprocess, 2 threads"): Figure(124, "images/s"),
    ("parity", parity(1)): Figure("IDENTICAL", ""),
    ("opening", "loading the language half"): Figure(2.9, "s"),
    ("opening", DIGEST): Figure(21, "s"),
    **{
        ("prefill", prefill(questions, kept)): Figure(ms, "ms")
        for questions, row in _PREFILL.items()
        for kept, ms in zip(_KEPT, row, strict=True)
    },
    **{("prefill", speed_up(questions, 64, "measured")): Figure(v, "") for questions, v in _SPEED_UP.items()},
    **{("prefill", speed_up(questions, 64, "by FLOPs")): Figure(5.18, "") for questions in _SPEED_UP},
    ("prefill", speed_up(1, 64, "by the roofline")): Figure(3.5, ""),
    ("training", STEP): Figure(0.54, "s"),
    ("training", FORWARD): Figure(0.235, "s"),
    ("training", BACKWARD): Figure(0.295, "s"),
    ("training", SHARE): Figure(0.39, ""),
    ("evaluation", evaluating(576, 16, 1)): Figure(1.25, "questions/s"),
    ("selectors", LAYER): Figure(0.98, "ms/image"),
    **{("selectors", selecting(method, 1)): Figure(ms, "ms/image") for method, ms in _SELECTORS.items()},
    **{("selectors", selecting(method, 32)): Figure(ms, "ms/image") for method, ms in _SELECTORS_OF_32.items()},
}
"""By part and row."""


def before(part: str, what: str) -> str:
    """Return the figure of a row before; empty if nothing was measured."""
    figure = BEFORE.get((part, what))
    return "" if figure is None else str(figure.value)
