"""The vocabulary of the harder benchmark."""

from stage1_extract.demo.hard.glyphs import DIGITS, WORDS
from stage1_extract.demo.hard.shapes import EDGES, TEXTURES
from stage1_extract.demo.questions import SceneQuestion, plural
from stage1_extract.demo.scenes import COLORS, SHAPES
from stage1_extract.demo.teaching import TokenisedQuestion
from stage1_extract.demo.words import numbered

_SENTENCES = (
    "what color is the which digit word in on sign how many object objects are there a yes no ? left right of "
    "above below"
)


def vocabulary() -> dict[str, int]:
    """Return the token id of each word."""
    looks = [*COLORS, *SHAPES, *map(plural, SHAPES), *EDGES, *TEXTURES]
    return numbered([*_SENTENCES.split(), *looks, *DIGITS, *WORDS])


def tokenise(question: SceneQuestion, words: dict[str, int]) -> TokenisedQuestion:
    """Tokenise a question as the tokenizer does, at a fraction of the cost."""
    ids = tuple(words[word] for word in question.text.replace("?", " ?").split())
    return TokenisedQuestion(question.kind, ids, words[question.answer], question.patches)
