"""The pages that people read, and the blocks of code in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
BETWEEN_COMMANDS = {"&&", "||", "|"}


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: str
    line: int
    language: str
    code: str
    not_run: str | None
    """Why the block is not tried, if the comment `<!-- not run: … -->` above it says so."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page of the site that is written by hand, relative to the root."""
    docs = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "stage1_extract/demo/README.md", "tests/README.md", *docs]


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page in some languages, in order; without languages all of them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, fence.start("code")), fence["language"], fence["code"], fence["reason"])
        for fence in FENCE.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def all_blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in some languages that are to be tried."""
    return [block for page in pages() for block in blocks(page, *languages) if block.not_run is None]


def typed(block: Block) -> Iterator[list[str]]:
    """The words of each command in a block of shell; of a console, what stands behind its prompts."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if block.language == "bash" or line.startswith("$ "):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            for is_between, command in groupby(words, key=BETWEEN_COMMANDS.__contains__):
                if not is_between:
                    yield list(command)


def quoted(page: str) -> set[str]:
    """The whole commands that stand in the text of a page, in backticks; one with an ellipsis or a blank is none."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    return {span for span in spans if re.match(r"(make|python -m|encode-once) ", span) and "…" not in span}
