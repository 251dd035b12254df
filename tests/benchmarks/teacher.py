"""What distillation adds to a training step: with the cached teacher, and with a second forward pass of the unpruned model."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from configs.load import load
from stage1_extract.demo.questions import questions
from stage1_extract.demo.scenes import scene
from stage2_prune import load_pruner
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.session import Session, open_session
from stage2_prune.teaching import teach
from stage2_prune.training.gradients import Aim, Guidance, accumulate_gradients
from stage2_prune.training.packed import Lesson
from stage2_prune.training.step import frozen, make_lesson
from stage2_prune.training.teacher import Teacher, open_teacher
from store.questions.question import Question, read_questions

ROOT = Path(__file__).parents[2]
STEPS, BATCH, QUESTIONS_PER_IMAGE, KEEP, KL_WEIGHT = 15, 10, 5, 64, 0.5


def steps_with_distillation(folder: Path) -> dict[str, float]:
    """On the demo's checkpoint, steps of ten questions about two images; the three ways take turns on the same step."""
    config = _config(folder)
    command = [sys.executable, "-m", "stage1_extract", "extract", "--config", str(config)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    experiment = load(config, {})
    teach.run(experiment)
    pruner = load_pruner("learned_scorer")
    assert isinstance(pruner, TrainedPruner)
    session = open_session(experiment, pruner.needs)
    pruner = pruner.fresh(session.features.spec(pruner, session.language.width), seed=0)
    asked = [question for question in read_questions(experiment.data) if question.split == "train"]
    teacher = open_teacher(session, [(session.features.image_id(q), [_lesson(session, q)]) for q in asked])
    batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
    ways: dict[str, tuple[float, Teacher | None]] = {
        "without": (0.0, None), "cached": (KL_WEIGHT, teacher), "live": (KL_WEIGHT, None)
    }  # fmt: skip
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with frozen(session.language.model):
        for number, batch in enumerate(session.features.batches(batches)):
            lessons = [_lesson(session, question) for question in batch.questions]
            for way, (kl_weight, cached) in ways.items():
                took = _step(session, pruner, batch, lessons, kl_weight, cached)
                if number:  # the first step warms up
                    seconds[way].append(took)
    ratios = {way: [a / b for a, b in zip(seconds[way], seconds["without"], strict=True)] for way in ("cached", "live")}
    return {
        "step without distillation, processor ms": 1000 * statistics.median(seconds["without"]),
        "with the cached teacher, in steps without": statistics.median(ratios["cached"]),
        "with the live teacher, in steps without": statistics.median(ratios["live"]),
    }


def _step(
    session: Session,
    pruner: TrainedPruner,
    batch: FeatureBatch,
    lessons: list[Lesson],
    kl_weight: float,
    teacher: Teacher | None,
) -> float:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    begun = time.process_time()
    accumulate_gradients(
        session.reader, pruner, batch, lessons, Aim(KEEP, kl_weight=kl_weight), scaler, Guidance(teacher=teacher)
    )
    return time.process_time() - begun


def _lesson(session: Session, question: Question) -> Lesson:
    return make_lesson(session.language, question, session.experiment.data.post_prompt)


def _config(folder: Path) -> Path:
    """Write scenes of the demo with questions, a validation question among them, and the config of an experiment on them."""
    (folder / "images").mkdir()
    rows: list[str] = []
    images = (1 + STEPS) * BATCH // QUESTIONS_PER_IMAGE
    for image in range(images + 1):
        drawn = scene(0, image)
        drawn.image.save(folder / "images" / f"{image}.png")
        rows += [
            json.dumps(
                {
                    "question_id": f"{image}-{number}",
                    "image": f"{image}.png",
                    "question": question.text,
                    "answers": [question.answer],
                    "split": "train" if image < images else "val",
                }
            )
            for number, question in enumerate(questions(drawn, 0, image)[:QUESTIONS_PER_IMAGE])
        ]
    (folder / "questions.jsonl").write_text("\n".join(rows) + "\n")
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["data"] = {"images": str(folder / "images"), "questions": str(folder / "questions.jsonl")}
    content |= {"run_dir": str(folder / "run")}
    (folder / "bench.yaml").write_text(yaml.safe_dump(content))
    return folder / "bench.yaml"
