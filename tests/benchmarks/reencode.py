"""The evaluation that this project replaces: every question's image goes through the tower again.

    python -m tests.benchmarks.reencode CONFIG

Everything behind the features is stage 2's own code. Prints the accuracy as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from configs.load import load
from stage1_extract.encoding.family import checkpoint_config
from stage1_extract.find_family import find_family
from stage1_extract.sources.images import decode_image, read_image_bytes
from stage2_prune.evaluation.cells import configured_pruners
from stage2_prune.find_family import open_language
from stage2_prune.pruning.tokens import VisualTokens
from stage2_prune.session.ask import ask, prepare
from stage2_prune.session.features import FeatureBatch
from store.questions.question import Question, read_questions
from store.questions.splits import select


def main(path: Path) -> None:
    """Evaluate the config's first method at its first budget."""
    experiment = load(path, {})
    config = checkpoint_config(experiment.model)
    encoder = find_family(config).open(experiment, config, torch.device("cpu"))
    language = open_language(experiment.model)
    pruner, keep = next(iter(configured_pruners(experiment).values())), experiment.prune.budgets[0]
    questions = select(read_questions(experiment.data), experiment.data, experiment.eval.split)
    right = 0
    for start in range(0, len(questions), experiment.eval.batch_size):
        asked = questions[start : start + experiment.eval.batch_size]
        batch = _encoded(experiment, encoder, asked)
        with torch.no_grad():
            pruned = pruner.prune(batch.tokens.only(pruner.needs), keep)
        prepared = prepare(language, asked, experiment.data.post_prompt)
        said = ask(language, batch, prepared, pruned, pruner.positions, experiment.eval.max_new_tokens)
        right += sum(one.right for one in said)
    print(json.dumps({"accuracy": right / len(questions), "questions": len(questions)}))


def _encoded(experiment: Any, encoder: Any, asked: list[Question]) -> FeatureBatch:
    """One image per question, encoded with the config's tower batch."""
    images = [
        encoder.preprocess(decode_image(read_image_bytes(experiment.data.images, q.image), q.image, 50_000_000))
        for q in asked
    ]
    size = experiment.extract.tower_batch
    parts = [encoder.encode(images[start : start + size]) for start in range(0, len(images), size)]
    arrays = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tokens = VisualTokens(tuple(q.image for q in asked), encoder.description.geometry.grid, arrays)
    return FeatureBatch(tuple(asked), torch.arange(len(asked)), tokens, arrays["projected"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
