"""Find how many questions the memory of a GPU carries at once, for `eval.batch_size: auto`."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from configs.experiment import Experiment
from configs.progress import say
from stage2_prune.errors import MemoryTooSmall
from stage2_prune.language.assemble import assemble
from stage2_prune.language.generate import generate
from stage2_prune.session.batch_size import batch_size, found_size, settled, write_size
from stage2_prune.session.session import Session
from store.questions.question import Question

LARGEST = 128
"""The number of questions that is tried first: with more, a batch is hardly faster per question."""
ROOM = 4
"""A trial asks 1 / ROOM more questions than its number, which leaves room for what methods need beside the model."""


def with_batch_size(session: Session, asked: Sequence[Question]) -> Session:
    """Return the session with a number for `eval.batch_size: auto`; on a GPU find the number, unless the run holds one.

    Raises:
        MemoryTooSmall: (exit 7) if the memory does not carry a single question.
    """
    experiment = session.experiment
    if experiment.eval.batch_size != "auto":
        return session
    if session.language.device.type == "cuda" and found_size(experiment.run_dir) is None:
        size = largest(lambda size: _try(session, asked, size), LARGEST)
        write_size(experiment.run_dir, size)
        say(f"eval.batch_size auto: {size} questions at once")
    return replace(session, experiment=settled(experiment))


def largest(attempt: Callable[[int], object], first: int) -> int:
    """Halve `first` until `attempt` does not run out of memory; raise MemoryTooSmall (exit 7) if it does so at 1."""
    size = first
    while size:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            size //= 2
            continue
        return size
    raise MemoryTooSmall(
        "expected memory for a question with every visual token beside the language model, there is less: free memory of the "
        "GPU, or choose a smaller model or model.dtype"
    )


@contextmanager
def enough_memory(experiment: Experiment) -> Generator[None, None, None]:
    """Turn running out of memory while questions are answered into MemoryTooSmall (exit 7); the answers so far are kept."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = batch_size(experiment)
        raise MemoryTooSmall(
            f"expected memory for {size} questions at once with every configured method, there is less: evaluate anew with a "
            f"smaller number, as by `--eval.batch-size {max(1, size // 2)} --overwrite`"
        ) from error


def _try(session: Session, asked: Sequence[Question], size: int) -> None:
    """Answer the longest question with every visual token, at least `size` times at once."""
    language, patches = session.language, session.features.patches
    count = size + -(-size // ROOM)
    longest = max((question.question for question in asked), key=len)
    prompt = language.prompt(longest + session.experiment.data.post_prompt)
    visual = torch.zeros((count, patches, language.width), dtype=language.dtype, device=language.device)
    try:
        inputs = assemble(language, [prompt] * count, visual, None, patches, "compact")
        generate(language, inputs, session.experiment.eval.max_new_tokens)
    finally:
        torch.cuda.empty_cache()
