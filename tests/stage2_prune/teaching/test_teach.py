"""The unpruned model is asked once: its signals are right, written as features are, and believed only where they belong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from safetensors.torch import load_file, save_file

from configs.cli import run_to_exit_code
from stage2_prune.cli import group
from stage2_prune.errors import NonFiniteTeacher, NotTaught, OtherRun
from stage2_prune.session.session import open_session
from stage2_prune.teaching import compute, parts, teach
from stage2_prune.teaching.verify import findings
from stage2_prune.training.distil import shortened
from stage2_prune.training.packed import Lesson, answer_logits, pack
from stage2_prune.training.step import make_lesson
from stage2_prune.training.teacher import SPAN, key_of, open_teacher, row_id
from store.care.verify import verify
from store.checkpoint.text import Prompt
from store.cli import group as store_group
from store.errors import FingerprintMismatch, StoreLocked
from store.questions.question import read_questions
from store.reading.reader import FeatureStore
from store.writing.lock import lock
from store.writing.writer import StoreWriter
from tests.faults.runs import ROOT, snapshot
from tests.helpers.stores import rewrite

KILLED = """
import os, signal, sys
from store.writing import writer
publish, seen = writer.publish, []
def dying(*arguments):
    seen.append(1)
    if len(seen) == {number} and not {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(*arguments)
    if len(seen) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
writer.publish = dying
from configs.cli import main
from stage2_prune.cli import group
main(group, ["teach", "--config", sys.argv[1]])
"""


@pytest.fixture
def wanted(tiny, tmp_path):
    """The tiny experiment with a teacher in a folder of its own, in shards that cut questions in two."""

    def make(name="teacher", **changes):
        section = {"path": str(tmp_path / name), "shard_rows": 7} | changes.pop("teach", {})
        return tiny(teach=section, **changes)

    return make


def data_of(experiment):
    """Every file that says something about data."""
    files = snapshot(experiment.teacher_path)
    return {name: content for name, content in files.items() if "writer" not in name and name != "config.yaml"}


def asked_of(experiment, *splits):
    """The questions of some splits by key, with the image and the lesson of each."""
    session = open_session(experiment, frozenset())
    questions = [question for question in read_questions(experiment.data) if question.split in splits]
    pairs = [(session.features.image_id(q), make_lesson(session.language, q, "")) for q in questions]
    return session, {key_of(*pair): (question, *pair) for question, pair in zip(questions, pairs, strict=True)}


def test_every_answer_token_has_the_row_that_the_unpruned_model_gives_and_plain_zarr_reads_it(wanted):
    experiment = wanted(teach={"top": 5})
    result = teach.run(experiment)
    session, asked = asked_of(experiment, "train", "val")
    features = zarr.open_group(experiment.teacher_path / "answers" / "features.zarr", mode="r")
    keys = [row.tobytes().hex() for row in features["ids/sha256"][...]]
    assert result["questions"] == len(asked) and result["answer_tokens"] == len(keys)
    for key, (question, _, lesson) in asked.items():
        first, count = features[SPAN][keys.index(key)].tolist()
        assert (first, count) == (keys.index(key), len(lesson.answer))
        (batch,) = session.features.batches([[question]])
        with torch.no_grad():
            logits = answer_logits(session.language, batch.projected[0], None, pack([lesson], session.language.device))
        right, own = shortened(logits, 5), slice(first, first + count)
        np.testing.assert_array_equal(features["top_ids"][own], right.ids)
        np.testing.assert_allclose(features["top_log_probabilities"][own], right.log_probabilities, atol=1e-5)
        np.testing.assert_allclose(features["log_rest"][own, 0], right.log_rest, atol=1e-5)
        assert (features[SPAN][own] == [first, count]).all()


def test_no_question_of_the_test_split_is_asked(wanted, monkeypatch):
    seen = []

    def watched(text, question, post_prompt):
        seen.append(question.split)
        return make_lesson(text, question, post_prompt)

    monkeypatch.setattr(parts, "make_lesson", watched)
    experiment = wanted()
    teach.run(experiment)
    assert {*seen} == {"train", "val"}
    ids = FeatureStore.open(experiment.teacher_path / "answers").ids
    _, tested = asked_of(experiment, "test")
    assert tested and all(ids.row_of_sha(key) is None for key in tested)


def test_the_key_is_a_function_of_image_prompt_and_answer():
    lesson = Lesson(Prompt((1, 5), (7, 8)), (9, 2))
    others = [
        ("b" * 64, lesson),
        ("a" * 64, Lesson(Prompt((1,), (5, 7, 8)), (9, 2))),
        ("a" * 64, Lesson(Prompt((1, 5), (7,)), (8, 9, 2))),
        ("a" * 64, Lesson(Prompt((1, 5), (7, 8)), (9, 3))),
    ]
    key = key_of("a" * 64, lesson)
    assert len({key, *(key_of(*other) for other in others)}) == 5 and key == key_of("a" * 64, lesson)
    assert row_id(key, 0) == key != row_id(key, 1)


@pytest.mark.parametrize(("number", "after"), [(1, False), (2, False), (2, True)])
def test_a_run_that_is_killed_at_a_commit_goes_on_to_the_bytes_of_one_that_was_not(wanted, tmp_path, number, after):
    whole, cut = wanted("whole"), wanted("cut")
    teach.run(whole)
    config = tmp_path / "cut.yaml"
    config.write_text(yaml.safe_dump(cut.model_dump(mode="json")))
    program = KILLED.format(number=number, after=after)
    done = subprocess.run([sys.executable, "-c", program, str(config)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert len(FeatureStore.open(cut.teacher_path / "answers").committed_shards) == number - (not after)
    again = teach.run(cut)
    assert again["computed"]["answers"] == {(1, False): 12, (2, False): 9, (2, True): 5}[number, after]
    assert data_of(cut) == data_of(whole)


def test_more_questions_are_added_and_nothing_else_is_computed_again(wanted, monkeypatch):
    teach.run(wanted(data__train=2))
    few = data_of(wanted())
    many = wanted()
    assert teach.price(many)["bytes"]["answers"] > 0
    added = teach.run(many)["computed"]["answers"]
    assert added == 4
    kept = {name: few[name] for name in few if "/c/" in name or name.startswith("answers/commits")}
    assert kept and all(data_of(many)[name] == content for name, content in kept.items())
    assert FeatureStore.open(many.teacher_path / "answers").plan.generation == 1
    session, asked = asked_of(many, "train", "val")
    assert open_teacher(session, [(image, [lesson]) for _, image, lesson in asked.values()])
    assert teach.run(wanted(data__train=2))["computed"]["answers"] == 0
    assert teach.price(many)["bytes"]["answers"] == 0 and not findings(many.teacher_path)


def test_an_unfinished_shard_of_questions_that_are_not_named_any_more_is_no_silent_gap(wanted, monkeypatch):
    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            teach.run(wanted())
    with pytest.raises(OtherRun, match=r"data\.train"):
        teach.run(wanted(data__train=3))
    assert teach.run(wanted(data__train=3), overwrite=True)["questions"] == 9


def other_language(checkpoint: Path, folder: Path) -> Path:
    """The same checkpoint with another head."""
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    (head,) = [name for name in weights if "lm_head" in name]
    weights[head] = weights[head] * 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_signals_of_another_language_model_or_form_are_refused_field_by_field(wanted, home, tmp_path):
    teach.run(wanted())
    other = wanted(model={"checkpoint": str(other_language(home / "checkpoint", tmp_path / "other")), "device": "cpu"})
    before = data_of(other)
    with pytest.raises(FingerprintMismatch, match=r"semantic\.language_model: expected '\w+', found '\w+'") as refused:
        teach.run(other)
    assert refused.value.exit_code == 4 and "differs in 1 fields" in str(refused.value)
    with pytest.raises(FingerprintMismatch, match=r"semantic\.top: expected 3, found 64"):
        teach.run(wanted(teach={"top": 3}))
    session, asked = asked_of(other, "train")
    with pytest.raises(FingerprintMismatch, match="language_model"):
        open_teacher(session, [(image, [lesson]) for _, image, lesson in asked.values()])
    assert data_of(other) == before
    assert teach.run(other, overwrite=True)["computed"]["answers"]


def test_a_second_writer_is_told_that_another_process_writes(wanted):
    experiment = wanted()
    with lock(experiment.teacher_path / "answers", "exclusive", 60), pytest.raises(StoreLocked):
        teach.run(experiment)


def test_a_question_that_gives_no_numbers_is_named_and_its_shard_is_not_committed(wanted, monkeypatch):
    experiment, logits_of = wanted(), compute.answer_logits

    def broken(language, visual, weights, packed):
        logits = logits_of(language, visual, weights, packed)
        broken.calls += 1
        return logits.index_fill(0, torch.tensor([len(logits) - 1]), torch.nan) if broken.calls == 4 else logits

    broken.calls = 0
    monkeypatch.setattr(compute, "answer_logits", broken)
    with pytest.raises(NonFiniteTeacher, match=r"question image_\d+\.png/1 about image_\d+\.png") as error:
        teach.run(experiment)
    assert error.value.exit_code == 3
    assert len(FeatureStore.open(experiment.teacher_path / "answers").committed_shards) < 3
    monkeypatch.undo()
    teach.run(experiment)
    assert not findings(experiment.teacher_path)


def test_the_price_is_what_is_written_and_no_model_is_loaded_for_it(wanted, monkeypatch):
    experiment = wanted(teach={"attention_layers": [8, 16]})
    with monkeypatch.context() as patch:
        patch.setattr(teach, "open_session", None)
        price = teach.price(experiment)
    assert not experiment.teacher_path.exists()
    teach.run(experiment)
    for part, size in price["bytes"].items():
        shards = (experiment.teacher_path / part / "features.zarr").glob("*/c/**/*")
        assert size == sum(path.stat().st_size for path in shards if path.is_file()) > 0


def test_a_flipped_byte_in_any_shard_is_found(wanted):
    experiment = wanted(teach={"attention_layers": [16]})
    teach.run(experiment)
    assert not findings(experiment.teacher_path)
    files = [p for p in experiment.teacher_path.glob("*/features.zarr/*/c/**/*") if p.is_file()]
    assert {p.relative_to(experiment.teacher_path).parts[0] for p in files} == {"answers", "attention"}
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:1] + bytes([whole[1] ^ 4]) + whole[2:])
        (found,) = findings(experiment.teacher_path)
        assert found.path == str(path)
        path.write_bytes(whole)
    assert not findings(experiment.teacher_path)


def test_spans_that_name_other_rows_are_found_though_every_checksum_is_right(wanted):
    experiment = wanted(teach={"shard_rows": 8})
    teach.run(experiment)
    folder = experiment.teacher_path / "answers"
    rewrite(folder, {SPAN: lambda rows: rows[::-1].copy()})
    assert not verify(folder, quick=False)
    assert {finding.shard for finding in findings(experiment.teacher_path)} == {0, 1, 2}


def test_the_command_says_what_it_costs_what_it_did_and_what_is_damaged(wanted, tmp_path, capsys):
    experiment = wanted()
    config = tmp_path / "teach.yaml"
    config.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))

    def said(*flags, expect=0, of=group, command="teach"):
        capsys.readouterr()
        assert run_to_exit_code(lambda: of.main([command, *flags], standalone_mode=False)) == expect, (
            capsys.readouterr()
        )
        return capsys.readouterr().out

    configured = ("--config", str(config))
    said(*configured, "--verify", expect=5)
    assert "MB to write" in said(*configured, "--dry-run") and not experiment.teacher_path.exists()
    assert json.loads(said(*configured, "--json"))["computed"]["answers"] >= 12
    assert "0 questions computed" in said(*configured)
    assert "nothing is damaged" in said(*configured, "--verify")
    folder = experiment.teacher_path / "answers"
    assert "nothing is damaged" in said(str(folder), of=store_group, command="verify")
    shard = folder / "features.zarr/top_ids/c/0/0"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    for of, command, arguments in (
        (group, "teach", (*configured, "--verify")),
        (store_group, "verify", (str(folder),)),
    ):
        damaged = said(*arguments, expect=4, of=of, command=command)
        assert "top_ids/c/0/0" in damaged and "then `python -m stage2_prune teach` computes it again" in damaged


def test_without_signals_a_training_says_how_to_get_them(wanted):
    experiment = wanted()
    session, asked = asked_of(experiment, "train")
    lessons = [(image, [lesson]) for _, image, lesson in asked.values()]
    with pytest.raises(NotTaught, match="python -m stage2_prune teach") as missing:
        open_teacher(session, lessons)
    assert missing.value.exit_code == 5
    teach.run(wanted(data__train=2))
    with pytest.raises(NotTaught, match="4 of 6 questions are not in it"):
        open_teacher(session, lessons)
