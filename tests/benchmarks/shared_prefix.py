"""Questions per second after opening, with 30 questions an image as in GQA, with and without `eval.share_prefix`."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import yaml

from configs.load import load
from stage1_extract.demo.questions import questions
from stage1_extract.demo.scenes import scene
from stage2_prune.evaluation.cell_progress import open_progress
from stage2_prune.evaluation.cells import configured_pruners, plan
from stage2_prune.evaluation.evaluate import answer
from stage2_prune.session.session import Session, open_session
from store.questions.question import Question, read_questions

ROOT = Path(__file__).parents[2]
METHODS = ("keep_all", "cls_attention", "div_prune")
KEEP, IMAGES, QUESTIONS_PER_IMAGE, ROUNDS = 64, 6, 30, 3


def questions_per_second(folder: Path) -> dict[str, float]:
    """On the demo's checkpoint, a batch per image; 64 tokens, and all 576 for `keep_all`."""
    config = _config(folder)
    subprocess.run(
        [sys.executable, "-m", "stage1_extract", "extract", "--config", str(config)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    experiment = load(config, {})
    session = open_session(experiment, frozenset({"projected", "cls_attention"}))
    asked = read_questions(experiment.data)
    rates: dict[tuple[str, bool], list[float]] = {(name, share): [] for name in METHODS for share in (False, True)}
    for number in range(1 + ROUNDS):
        for (name, share), measured in rates.items():
            rate = _rate(session, folder / f"{number}-{name}-{share}", name, share, asked)
            if number:  # the first round warms up
                measured.append(rate)
    found: dict[str, float] = {}
    for name in METHODS:
        alone, shared = rates[name, False], rates[name, True]
        found[f"{name}, questions/s"] = statistics.median(alone)
        found[f"{name}, questions/s, prefixes shared"] = statistics.median(shared)
        found[f"{name}, speed-up by sharing"] = statistics.median(b / a for a, b in zip(alone, shared, strict=True))
    return found


def _rate(session: Session, run_dir: Path, method: str, share: bool, asked: list[Question]) -> float:
    """Answer all questions with one method, in a run directory of its own."""
    section = session.experiment.eval.model_copy(update={"share_prefix": share})
    experiment = session.experiment.model_copy(update={"run_dir": run_dir, "eval": section})
    session = replace(session, experiment=experiment)
    pruner = configured_pruners(experiment)[method]
    cells, _ = plan(experiment, {method: pruner}, session.features.patches, session.language.depth)
    todo = open_progress(session, cells, {}, asked, overwrite=False)
    begun = time.perf_counter()
    answer(session, todo, asked, lambda _: None)
    return len(asked) / (time.perf_counter() - begun)


def _config(folder: Path) -> Path:
    """Write scenes of the demo with six times as many questions, and the config of an experiment on them."""
    (folder / "images").mkdir()
    rows: list[str] = []
    for image in range(IMAGES):
        drawn = scene(0, image)
        drawn.image.save(folder / "images" / f"{image}.png")
        several = [question for seed in range(QUESTIONS_PER_IMAGE // 5) for question in questions(drawn, seed, image)]
        rows += [
            json.dumps(
                {
                    "question_id": f"{image}-{number}",
                    "image": f"{image}.png",
                    "question": question.text,
                    "answers": [question.answer],
                    "choices": question.choices,
                    "split": "test",
                }
            )
            for number, question in enumerate(several)
        ]
    (folder / "questions.jsonl").write_text("\n".join(rows) + "\n")
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["data"] = {"images": str(folder / "images"), "questions": str(folder / "questions.jsonl")}
    content["prune"] = {"methods": list(METHODS), "budgets": [KEEP]}
    content |= {"eval": {"batch_size": QUESTIONS_PER_IMAGE, "max_new_tokens": 4}, "run_dir": str(folder / "run")}
    (folder / "bench.yaml").write_text(yaml.safe_dump(content))
    return folder / "bench.yaml"
