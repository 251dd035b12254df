"""The text side of a checkpoint: its tokenizer, its chat template, and the token that stands for an image.

Both stages open it: stage 2 to ask questions, and `extract` to find out before the first image that they can be asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from jaxtyping import Int
from torch import Tensor

from store.errors import DamagedCheckpoint, InvalidQuestions


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt on both sides of its image; the visual tokens go between them."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """The text side of a checkpoint: it makes prompts of questions, and text of answers; it holds no model."""

    tokenizer: Any
    template: str
    """The checkpoint's chat template, verbatim."""
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    vocabulary: int | None = None
    """Number of rows of the text embeddings; None where no config gives it."""
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The checkpoint's own generation settings that answers follow, by name; see store/checkpoint/generation.py."""

    def text(self, question: str) -> str:
        """Fill the template with an image and a question, up to where the answer begins.

        Raises DamagedCheckpoint (exit 4) where the template, which is code of the checkpoint, raises any error.
        """
        content = [{"type": "image"}, {"type": "text", "text": question}]
        try:
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:
            message = " ".join(str(error).split())
            raise DamagedCheckpoint(
                f"expected a chat template that makes a prompt of an image and the question {question!r:.80}, the "
                f"checkpoint's raises {type(error).__name__}: {message:.200}; correct the template, or download it again"
            ) from None

    def prompt(self, question: str) -> Prompt:
        """Tokenise the prompt of a question.

        Raises InvalidQuestions (exit 2) unless it holds exactly one image, and DamagedCheckpoint (exit 4) for a token
        without an embedding.
        """
        ids = self._ids(self.text(question))
        if ids.count(self.image_token_id) != 1:
            raise InvalidQuestions(
                f"expected one image placeholder in the prompt of {question!r}, found "
                f"{ids.count(self.image_token_id)}: remove it from the question, or check the chat template"
            )
        at = ids.index(self.image_token_id)
        return Prompt(tuple(ids[:at]), tuple(ids[at + 1 :]))

    def answer_ids(self, question: str, answer: str) -> tuple[int, ...]:
        """Tokenise an answer behind the prompt, as `choice_ids` does."""
        return self.choice_ids(question, [answer])[0]

    def choice_ids(self, question: str, answers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Tokenise each answer behind the prompt, because a word has other ids there than at the start of a text.

        Raises InvalidQuestions (exit 2) where an answer's first token merges with the end of the prompt.
        """
        text = self.text(question)
        ids = self._ids(text)
        return tuple(self._behind(text, ids, answer) for answer in answers)

    def _behind(self, text: str, ids: list[int], answer: str) -> tuple[int, ...]:
        """Tokenise an answer behind a prompt, whose text has the token ids `ids`."""
        joined = self._ids(text + ("" if text[-1:].isspace() else " ") + answer)
        if joined[: len(ids)] != ids or len(joined) == len(ids):
            raise InvalidQuestions(
                f"expected {answer!r} to be tokens of its own after {text[-20:]!r}, they merge: reword it"
            )
        return tuple(joined[len(ids) :])

    def decode(self, tokens: Int[Tensor, "question step"]) -> list[str]:
        """Turn the tokens of answers into text: up to the end token, without special tokens."""
        stock: Any = tokens  # torch leaves the type of `tolist` open
        answers: list[list[int]] = stock.tolist()
        rows = [list(takewhile(lambda token: token not in self.eos_token_ids, row)) for row in answers]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _ids(self, text: str) -> list[int]:
        """Tokenise a text with one begin-of-text token; DamagedCheckpoint (exit 4) for an id without an embedding."""
        bos = self.tokenizer.bos_token
        twice = bos is not None and text.startswith(bos)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not twice)["input_ids"]
        if self.vocabulary is not None and max(ids, default=0) >= self.vocabulary:
            raise DamagedCheckpoint(
                f"expected token ids below {self.vocabulary}, the rows of the text embeddings, the tokenizer gives "
                f"{max(ids)} ({self.tokenizer.convert_ids_to_tokens(max(ids))!r}) in {text!r:.80}: are tokenizer and "
                "weights of one checkpoint?"
            )
        return ids
