"""Check arguments from Python before anything is computed, because torch would broadcast a wrong shape to a wrong answer."""

from collections.abc import Sequence

from torch import Tensor

from configs.counted import counted
from configs.errors import WrongCall


def require_visual_tokens(given: object, width: int, batched: bool = False) -> None:
    """Refuse an argument that is no tensor of visual tokens in the language model's embedding space.

    Args:
        given: The argument.
        width: Width of the language model's embeddings.
        batched: Whether an axis of images may stand in front.

    Raises:
        WrongCall: (exit 2) The argument is no tensor, or a tensor of another type, shape or width.
    """
    remedy = _remedy(given, width, batched)
    if remedy is not None:
        shape = f"(token, {width})" + (f" or (image, token, {width})" if batched else "")
        form = f"{tuple(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise WrongCall(f"expected visual tokens as a tensor of floats {shape}, got {form}: {remedy}")


def _remedy(given: object, width: int, batched: bool) -> str | None:
    """Say what makes an argument usable; None if the argument is usable as it is."""
    if not isinstance(given, Tensor):
        return "torch.as_tensor makes a tensor of it"
    if given.dim() == 3 and not batched:
        return "give one image at a time, such as features[0]"
    if given.dim() not in (2, 3):
        return "give it one axis of tokens and one of the embedding"
    if given.shape[-1] != width:
        return "project it into the language model's embedding space, where the array `projected` is"
    return None if given.is_floating_point() else "convert it, such as by features.float()"


def question_answer_pairs(
    features: Tensor, questions: Sequence[str] | str, answers: Sequence[str] | str
) -> list[tuple[str, str]]:
    """Return each question with its answer.

    Raises WrongCall (exit 2) for an empty answer, and unless there are as many answers as questions and, where features have an
    axis of images, as many images.
    """
    asked, right = ([given] if isinstance(given, str) else list(given) for given in (questions, answers))
    images = len(features) if features.dim() == 3 else None
    if not asked or len(right) != len(asked) or images not in (None, len(asked)):
        shown_images = "one image" if images is None else counted(images, "image")
        raise WrongCall(
            f"expected an answer to each question, and as many images as questions or one (token, embed) for all, got "
            f"{shown_images}, {counted(len(asked), 'question')} and {counted(len(right), 'answer')}: give one of each"
        )
    if not all(answer.strip() for answer in right):
        raise WrongCall("expected an answer to each question, got an empty one: leave out questions without an answer")
    return list(zip(asked, right, strict=True))
